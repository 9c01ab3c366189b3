"""The public DDP code and this library, same weights, same image, in alternating processes on one machine.

The public code is fetched by you and never part of this project (https://github.com/JiYuanFeng/DDP, folder segmentation).
It wants an environment of its own, with the same torch:

    python -m venv public
    public/bin/pip install torch==2.13.0 numpy einops addict yapf opencv-python-headless prettytable matplotlib packaging
    public/bin/pip install "setuptools<81" wheel
    MMCV_WITH_OPS=0 public/bin/pip install --no-build-isolation mmcv==1.7.2
    public/bin/pip install --no-deps mmcls==0.25.0 timm
    python benchmarks/public_code/compare.py --public-python public/bin/python --source DDP/segmentation --work out/public

Each process is one variant; a round is one process of each. Rows are added to results/bench_public_code.csv: one for each process,
in the order of time, with what other processes used of the processors meanwhile (an idle machine has next to none).
Ratios mean something within a round only.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from noise2map.bench.timing import machine_facts
from noise2map.report.tables import read_csv, write_csv
from noise2map.runs.provenance import commit, device_name

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TABLE = ROOT / "results" / "bench_public_code.csv"
# What `keep_freed_memory()` tells the C library of a running process, as variables of a process that begins.
KEEP = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_MAX_": "0", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class Variant:
    """What one process runs."""

    implementation: str
    dtype: str
    compiled: bool = False
    keep: bool = False
    size: str = "512x512"
    repeats: int = 2

    @property
    def words(self) -> list[str]:
        """Arguments of one_process.py."""
        words = [self.implementation, "--dtype", self.dtype, "--size", self.size, "--repeats", str(self.repeats)]
        return words + ["--compiled"] * self.compiled + ["--keep-memory"] * self.keep


USUAL = [
    Variant("public", "float32"),
    Variant("ours", "float32"),
    Variant("public", "bfloat16"),
    Variant("ours", "bfloat16"),
    Variant("ours", "float32", compiled=True),
    Variant("ours", "bfloat16", compiled=True),
    Variant("public", "float32", keep=True),
    Variant("ours", "float32", keep=True),
    Variant("public", "bfloat16", keep=True),
    Variant("ours", "bfloat16", keep=True),
]
LARGE = [
    Variant("public", "float32", size="1024x2048", repeats=1),
    Variant("ours", "float32", size="1024x2048", repeats=1),
    Variant("ours", "bfloat16", size="1024x2048", repeats=1),
]


def prepare(arguments: argparse.Namespace) -> None:
    """Weights by the public code, and the same weights as a model of this library; kept between calls."""
    if (arguments.work / "converted" / "config.json").exists():
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    said = [str(arguments.public_python), str(HERE / "public_model.py"), str(arguments.source), str(arguments.work)]
    subprocess.run(said, check=True, stdout=subprocess.DEVNULL)
    convert = ["convert", "ddp", str(arguments.work / "weights.pth"), "--out", str(arguments.work / "converted")]
    subprocess.run([sys.executable, "-m", "noise2map", *convert], check=True, stdout=subprocess.DEVNULL)


def processor_seconds() -> float:
    """Processor seconds that the machine has spent so far."""
    user, nice, system, _idle, _wait, *interrupts = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def run(variant: Variant, number: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One process; its row."""
    python = arguments.public_python if variant.implementation == "public" else sys.executable
    words = [*variant.words, "--threads", str(arguments.threads)]
    places = ["--work", str(arguments.work), "--source", str(arguments.source)]
    environment = {name: value for name, value in os.environ.items() if name not in KEEP and name != "OMP_WAIT_POLICY"}
    environment |= {
        "PYTHONPYCACHEPREFIX": str(arguments.work / "pycache"),
        "TORCHINDUCTOR_CACHE_DIR": str(arguments.work / "inductor"),
    }
    environment |= KEEP if variant.keep and variant.implementation == "public" else {}
    before, start = processor_seconds(), os.times()
    done = subprocess.run(
        [str(python), str(HERE / "one_process.py"), *words, *places], env=environment, check=True, capture_output=True, text=True
    )
    own = os.times().children_user + os.times().children_system - start.children_user - start.children_system
    found = json.loads(done.stdout.strip().splitlines()[-1])
    public = variant.implementation == "public"
    row = {"variant": "public code" if public else "this library", "size": variant.size, "classes": 150, "round": number}
    row |= {"mode": "compiled" if variant.compiled else "eager"} | found
    row |= {"others_cpu_s": round(processor_seconds() - before - own, 1), "threads": arguments.threads}
    row |= {"device": device_name(torch.device("cpu"))} | machine_facts(torch.device("cpu"))
    row |= {"memory_kept": variant.keep, "dtype": variant.dtype, "commit": arguments.public_commit if public else commit()}
    return row | {"date": date.today().isoformat(), "command": arguments.command}


def add(row: dict[str, object], table: Path) -> None:
    """A row more in the table; columns of both."""
    rows = [*(read_csv(table) if table.exists() else []), row]
    columns = list(dict.fromkeys(column for one in rows for column in one))
    write_csv(table, [{column: one.get(column) for column in columns} for one in rows])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public-python", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True, help="Folder segmentation of the public code.")
    parser.add_argument("--public-commit", default="5b7dd026")
    parser.add_argument("--work", type=Path, required=True, help="Scratch: weights, images, compiled graphs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-rounds", type=int, default=1, help="Of 1024x2048, in the first so many rounds.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=TABLE, help="A table that rows are added to.")
    arguments = parser.parse_args()
    arguments.command = shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    for name in ("public_python", "source", "work"):
        setattr(arguments, name, getattr(arguments, name).absolute())
    prepare(arguments)
    shutil.rmtree(arguments.work / "inductor", ignore_errors=True)
    for number in range(arguments.rounds):
        for variant in [*USUAL, *(LARGE if number < arguments.large_rounds else [])]:
            start = time.perf_counter()
            row = run(variant, number, arguments)
            add(row, arguments.out)
            seconds = time.perf_counter() - start
            what = f"{row['variant']} {shlex.join(variant.words)}"
            print(
                f"{number} {what}: three steps {row['three_steps_s']} s, others {row['others_cpu_s']} s, {seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
