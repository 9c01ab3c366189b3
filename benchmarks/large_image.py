"""Is the bound on memory kept? A frame enlarged to a large image, predicted at its own size into files, in this process.

    python benchmarks/large_image.py --size 6000x4000 --memory 2GiB --steps 1 --out results/large_image.csv

The peak is that of the whole process from the loaded model on (VmHWM): Python, libraries, weights, image, maps, files on their way.
"""

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from noise2map.data import load_samples
from noise2map.inference.folder import predict_folder
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import PredictionOptions
from noise2map.report.tables import merge_rows, text_table
from noise2map.runs.memory import parse_bytes
from noise2map.runs.peak_memory import read_peak, reset_peak
from noise2map.runs.provenance import provenance


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="freedoom-depth-laplace-tiny")
    parser.add_argument("--size", default="6000x4000")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        load_samples("test")[0]["image"].resize((width, height), Image.Resampling.BICUBIC).save(photo)
        predictor = Predictor.from_pretrained(arguments.model, device="cpu", memory=arguments.memory)
        reset_peak(torch.device("cpu"))
        began = time.perf_counter()
        options = PredictionOptions(num_inference_steps=arguments.steps, size="native")
        done = predict_folder(photo, Path(folder, "maps"), predictor, options, progress=False)
        seconds = time.perf_counter() - began
    tiles = done.lines[0].get("tiles") or {"size": [width, height], "grid": [1, 1]}
    row = {
        "model": arguments.model, "size": arguments.size, "steps": arguments.steps, "memory": arguments.memory,
        "bound_mib": parse_bytes(arguments.memory) // 2**20, "peak_mib": round(read_peak(torch.device("cpu")) / 2**20),
        "tile": "x".join(map(str, tiles["size"])), "grid": "x".join(map(str, tiles["grid"])), "seconds": round(seconds),
    }  # fmt: skip
    print(text_table([row]))
    if arguments.out:
        facts = provenance(torch.device("cpu"), torch.float32, 0) | {"command": shlex.join(["python", *sys.argv])}
        merge_rows(arguments.out, [row | facts], ("model", "size", "steps", "memory"))


if __name__ == "__main__":
    main()
