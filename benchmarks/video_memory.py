"""Does the memory of predicting a clip grow with the clip? The peak of the command's process on a short and a ten times longer one.

    python benchmarks/video_memory.py --out results/video_memory.csv

Clips of 320x240 (a moving pattern, written with PyAV) go through ``noise2map predict``, one process each; what is written down is
the peak of resident memory that the kernel keeps for that process (VmHWM). A frame that is kept by mistake would show: 900 of them
are 202,500 KiB.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from noise2map.report.tables import merge_rows, text_table
from noise2map.runs.provenance import provenance

LOOK_S = 0.05


def write_clip(path: Path, frames: int, width: int, height: int) -> None:
    """A clip of a pattern that moves by one pixel a frame."""
    ramp = np.arange(width + height)[None] % 256
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            rows = np.stack([np.roll(ramp[0], number + row)[:width] for row in range(height)]).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([rows] * 3, -1), format="rgb24")))
        container.mux(stream.encode(None))


def peak_kib(words: list[str], folder: Path) -> int:
    """Peak of resident memory of a process, KiB, read from the kernel until it ends.

    A child's ``ru_maxrss`` would begin at that of the process which made it.

    Raises:
        RuntimeError: If the process fails, or the kernel tells no peak.
    """
    peak = 0
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
        time.sleep(LOOK_S)
    if process.wait() or not peak:
        raise RuntimeError(f"{shlex.join(words)} ended with code {process.returncode} and a peak of {peak} KiB")
    return peak


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="freedoom-segmentation-tiny")
    parser.add_argument("--frames", type=int, nargs="+", default=(100, 1000))
    parser.add_argument("--size", default="64x48", help="At which a frame is processed.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for frames in arguments.frames:
            write_clip(folder / f"n{frames}.mp4", frames, 320, 240)
            said = f"predict n{frames}.mp4 --model {arguments.model} --steps 1 --size {arguments.size} --device cpu"
            peak = peak_kib([sys.executable, "-m", "noise2map", *said.split(), "--out", f"out{frames}"], folder)
            row = {"frames": frames, "size": "320x240", "processed_size": arguments.size, "model": arguments.model, "calls": 1}
            rows.append(row | {"vm_hwm_kib": peak} | provenance(torch.device("cpu"), torch.float32, 0))
            rows[-1]["command"] = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
            print(text_table(rows[-1:]), flush=True)
    if arguments.out:
        merge_rows(arguments.out, rows, ("frames", "model"))


if __name__ == "__main__":
    main()
