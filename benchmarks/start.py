"""Where the start of a prediction goes: processor seconds of fresh processes, each doing one thing more than the one before.

    python benchmarks/start.py --rounds 5 --out results/start.csv

Processor seconds, not those of the clock: an import reads files that others may have warmed up. The first round is not counted: it
fills the file cache and writes bytecode.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from noise2map.bench.timing import machine_facts
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.provenance import provenance

MODEL = "freedoom-segmentation-tiny"
OPEN = f"from noise2map.inference.predictor import Predictor; predictor = Predictor.from_pretrained('{MODEL}', device='cpu')"
FIRST = "from PIL import Image; predictor(Image.new('RGB', (320, 240)), num_inference_steps=3)"
STAGES = {
    "python": "pass",
    "import torch": "import torch",
    "import transformers' model base class": "from transformers import PreTrainedModel",
    "import Predictor": "from noise2map.inference.predictor import Predictor",
    f"open {MODEL}": OPEN,
    "first map, 320x240, three steps": f"{OPEN}; {FIRST}",
}


def seconds(program: str) -> tuple[float, float]:
    """Processor and clock seconds of a fresh process."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return processor, time.perf_counter() - start


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    for number in range(arguments.rounds + 1):
        for stage, program in STAGES.items():
            measured = seconds(program)
            if number:
                found[stage].append(measured)
    facts = {"rounds": arguments.rounds, "threads_of_process": 1} | machine_facts(torch.device("cpu"))
    facts |= provenance(torch.device("cpu"), torch.float32, 0)
    facts["command"] = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    rows = []
    for stage, measured in found.items():
        processor, clock = (statistics.median(values) for values in zip(*measured))
        rows.append({"stage": stage, "cpu_s": round(processor, 2), "s": round(clock, 2)} | facts)
    print(text_table(rows, ["stage", "cpu_s", "s"]))
    if arguments.out:
        write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
