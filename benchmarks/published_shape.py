"""From an official checkpoint to guided, scored images, on a U-Net of the published LSUN-256 shape with random weights.

    python benchmarks/published_shape.py --work out/published --images data/freedoom-rooms/val --out results/published_shape.csv

Every command of the path in docs/guidance.md is run as a user types it, with as few steps as it takes, and measured: seconds by the
clock, processor seconds, the most memory. The weights say nothing, so neither do the images: what is tried is that the path works
on 553 million weights, and what it takes. About 14 GiB of disk in --work.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from noise2map.convert import LSUN_256_FLAGS
from noise2map.convert.adm_flags import AdmArchitecture, adm_architecture
from noise2map.convert.adm_keys import adm_layer_names
from noise2map.report.tables import read_csv, text_table, write_csv
from noise2map.runs.provenance import provenance

# In time order; {work} and {images} are filled in. Flags of sizes stand in the table.
COMMANDS = {
    "convert": "convert adm {work}/lsun.pt --preset lsun-256 --out {work}/generator",
    "forecast of the predictor": "train depth-predictor {predictor} --dry-run",
    "train a depth predictor": "train depth-predictor {predictor}",
    "train a depth prior": "train depth-prior --resolution 128 --root {images} --out {work}/prior --set train.iterations=4 "
    "--set train.batch_size=4 --set train.save_every=4 --set train.log_every=4 --set schedule.warmup_iterations=1 "
    "--set train.eval_images=4 --set train.sample_images=0",
    "forecast of the images": "sample {sampling} --seeds 0-15 --steps 50 --out {work}/images --dry-run",
    "guided and unguided images": "sample {sampling} --seeds 0-1 --steps 2 --out {work}/images",
    "scores": "evaluate generator {sampling} --references {images} --limit 8 --samples 2 --steps 2 --allow-singular --resamples 0 "
    "--out {work}/scores",
}
PREDICTOR = (
    "--model {work}/generator --root {images} --val-root {images} --labels freedoom-depth-laplace-tiny --counts 4 --steps 2 "
    "--batch-size 2 --val-images 2 --timesteps 400 --no-by-block --out {work}/predictor"
)
SAMPLING = (
    "--model {work}/generator --depth-predictor {work}/predictor/final --depth-prior {work}/prior/final --sampler ddim "
    "--timestep-spacing trailing --consistency-scale 40 --prior-scale 40 --batch-size 2"
)


def official_tensors(unet: UNet2DModel, architecture: AdmArchitecture) -> dict[str, Tensor]:
    """The weights of a U-Net under ADM's names and in its layouts."""
    ours, found = unet.state_dict(), {}
    for theirs, name in adm_layer_names(architecture).items():
        for leaf in ("weight", "bias"):
            if name.endswith(".qkv"):
                parts = [ours[f"{name.removesuffix('qkv')}{part}.{leaf}"] for part in ("to_q", "to_k", "to_v")]
                heads = [part.reshape(-1, architecture.head_dim or len(part), *part.shape[1:]) for part in parts]
                joint = torch.stack(heads, 1).flatten(0, 2)
                found[f"{theirs}.{leaf}"] = joint[..., None] if leaf == "weight" else joint
            elif f"{name}.{leaf}" in ours:
                value = ours[f"{name}.{leaf}"]
                found[f"{theirs}.{leaf}"] = value[..., None] if theirs.endswith("proj_out") and leaf == "weight" else value
    return found


def write_checkpoint(path: Path) -> None:
    """A file like the official LSUN ones, with random weights."""
    architecture = adm_architecture(LSUN_256_FLAGS)
    torch.manual_seed(0)
    unet = UNet2DModel(**architecture.unet_config())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.contiguous() for name, value in official_tensors(unet, architecture).items()}, path)


def measure(words: list[str], log: Path) -> dict[str, Any]:
    """Runs a command of the library; its seconds and the most memory of its process.

    Raises:
        RuntimeError: if it fails, with its last line.
    """
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, "-m", "noise2map", *words], stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{shlex.join(words)}: {log.read_text(encoding='utf-8').strip().splitlines()[-1:]} ({log})")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/published"))
    parser.add_argument("--images", type=Path, default=Path("data/freedoom-rooms/val"), help="rendered frames")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = {"work": str(options.work), "images": str(options.images)}
    names |= {"predictor": PREDICTOR.format(**names), "sampling": SAMPLING.format(**names)}
    if not (options.work / "lsun.pt").exists():
        write_checkpoint(options.work / "lsun.pt")
    rows = read_csv(options.out) if options.out is not None and options.out.exists() else []
    for stage, text in COMMANDS.items():
        if any(row["stage"] == stage for row in rows):
            continue  # of an earlier run that ended before its time
        words = text.format(**names).split()
        log = options.work / f"{stage.replace(' ', '-')}.txt"
        row = {"stage": stage, **measure(words, log), "command": f"noise2map {shlex.join(words)}"}
        print(text_table([row], ["stage", "seconds", "cpu_s", "peak_mb"]), flush=True)
        dtype = torch.bfloat16 if "bfloat16" in words else torch.float32
        rows.append({**provenance(torch.device("cpu"), dtype, 0), **row})
        if options.out is not None:
            write_csv(options.out, rows)


if __name__ == "__main__":
    main()
