"""What two threads cost on cores that others use, too: threads that spin while they wait, and threads that sleep.

    python benchmarks/busy_threads.py --others 4 --rounds 3 --out results/busy_threads.csv

So many other processes compute without end while fresh processes make class maps of four images of 320x240 in three steps, with the
environments that are compared taking turns. Seconds of the clock.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from noise2map.bench.timing import machine_facts
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.provenance import provenance

BUSY = "while True: sum(range(100000))"
WORK = """
import time, torch
from PIL import Image
from noise2map.inference.predictor import Predictor
predictor = Predictor.from_pretrained("freedoom-segmentation-tiny", device="cpu")
images = [Image.new("RGB", (320, 240), (40 * i, 90, 90)) for i in range(4)]
predictor(images, num_inference_steps=3)
start = time.perf_counter()
predictor(images, num_inference_steps=3)
print(time.perf_counter() - start)
"""
SETTINGS = {
    "PyTorch's default": {"OMP_NUM_THREADS": "2"},
    "sleep after a few microseconds": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"},
    "sleep at once": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def seconds(setting: dict[str, str]) -> float:
    """Of the second run in a fresh process."""
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", WORK], env=environment | setting, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=4, help="Busy processes beside.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    facts = {"rounds": arguments.rounds} | machine_facts(torch.device("cpu")) | provenance(torch.device("cpu"), torch.float32, 0)
    facts["command"] = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    for others in dict.fromkeys((0, arguments.others)):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
        try:
            times: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for _ in range(arguments.rounds):
                for name, setting in SETTINGS.items():
                    times[name].append(seconds(setting))
        finally:
            for process in busy:
                process.kill()
                process.wait()
        rows += [
            {"others": others, "waiting": name, "s": round(statistics.median(values), 2), "s_low": round(min(values), 2)}
            | {"s_high": round(max(values), 2)}
            | facts
            for name, values in times.items()
        ]
    print(text_table(rows, ["others", "waiting", "s", "s_low", "s_high"]))
    if arguments.out:
        write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
