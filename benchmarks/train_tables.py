"""Decoders on one frozen encoder, several seeds of each, trained and evaluated: the rows of the tables in docs/findings.md.

One process on each core; what is there already is not made again, an interrupted run is gone on with: run the same command again.
The features of the encoder are computed by the first run that needs them. To be called in the root of the repository.

    python benchmarks/train_tables.py --work runs/tables
    python benchmarks/train_tables.py --work /tmp/try --only depth-laplace depth-nodiffusion --seeds 0 --set train.iterations=20
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from noise2map.report.tables import read_csv, write_csv
from noise2map.runs.run_directory import FINAL_DIRECTORY
from noise2map.training.maps.recipe import load_recipe
from noise2map.training.recipe_files import recipe_names

FOLDER = "decoders/"
TABLE = "results/decoders_{task}.csv"
STEPS = "1 3 10"
# Of decoders behind covers: what may be there is a set of whole maps, which their scores compare with the truth.
SAMPLES = 8
RESAMPLES = 300
SURROUND = "data/surround"
PLACES = 90  # of the bird's-eye view: eight maps of ten calls each take a second and a half a place


@dataclass(frozen=True)
class Job:
    """A decoder of one seed.

    Attributes:
        recipe: its recipe, without the folder.
        seed: seed of its weights, order and noise.
        changes: further ``section.field=value``.
        work: folder of all runs.
    """

    recipe: str
    seed: int
    changes: tuple[str, ...]
    work: Path

    @property
    def run(self) -> Path:
        """Its run directory."""
        return self.work / f"{self.recipe}-seed{self.seed}"

    @property
    def settings(self) -> list[str]:
        """All changes to the recipe."""
        return [*self.changes, f"train.seed={self.seed}"]

    @property
    def cache(self) -> str | None:
        """The folder of the features that it reads."""
        return load_recipe(FOLDER + self.recipe, self.settings).train.cache_features

    def train(self) -> list[str]:
        """The command that trains it."""
        sets = [word for change in self.settings for word in ("--set", change)]
        return ["noise2map", "train", FOLDER + self.recipe, "--out", str(self.run), *sets]

    def evaluate(self, root: Path, limit: int, hide: str | None = None) -> list[str]:
        """The command that scores it on the test frames in ``root``; covered by ``hide``, or as in training, where it was so."""
        recipe = load_recipe(FOLDER + self.recipe, self.settings)
        above = recipe.model.task == "bev"
        words = ["noise2map", "evaluate", "--model", str(self.run / FINAL_DIRECTORY)]
        words += ["--dataset", recipe.data.name, "--root", recipe.data.root or SURROUND if above else str(root)]
        words += ["--limit", str(limit or PLACES if above else limit), "--out", str(self.run / "evaluation"), "--overwrite"]
        one_call = recipe.model.config.get("diffusion") is False
        words += ["--steps", *("1" if one_call else STEPS).split()]
        if recipe.data.hide is None and not above:
            return words
        words += ["--cells", "all"] if above else ["--hide", hide or str(recipe.data.hide)]
        words += ["--ensemble", str(SAMPLES), "--sample-scores"]
        words += ["--cluster", "map", "--resamples", str(RESAMPLES)]
        return [*words, "--sampling", "field" if one_call else "diffusion,field"]


def make_jobs(names: Sequence[str], seeds: Sequence[int], changes: Sequence[str], work: Path) -> list[Job]:
    """All decoders of the first seed before those of the next: a table of one seed is whole first."""
    return [Job(name, seed, tuple(changes), work) for seed in seeds for name in names]


def waves(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that may run side by side: the first of each cache fills it, before the others read it."""
    first = {job.cache: job for job in reversed(jobs)}
    yield [job for job in jobs if first[job.cache] is job]
    yield [job for job in jobs if first[job.cache] is not job]


def run(words: Sequence[str], log: Path) -> None:
    """A command of the library in a process of its own, its output in a file.

    Raises:
        RuntimeError: if it fails, with its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, "-m", *words], stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(words)}: {' '.join(last)} ({log})")


def do(job: Job, root: Path, limit: int, hide: str | None = None) -> Job:
    """Train and evaluate a decoder, as far as that has not been done."""
    logs = job.work / "logs"
    run(job.train(), logs / f"{job.run.name}.txt")
    if not (job.run / "evaluation" / "evaluation.csv").exists():
        run(job.evaluate(root, limit, hide), logs / f"{job.run.name}.txt")
    return job


def collect(jobs: Sequence[Job]) -> dict[str, list[dict[str, object]]]:
    """Rows of all evaluations that there are, by task, with the recipe and the seed in front."""
    tables: dict[str, list[dict[str, object]]] = {}
    for job in jobs:
        path = job.run / "evaluation" / "evaluation.csv"
        for row in read_csv(path) if path.exists() else []:
            tables.setdefault(str(row["task"]), []).append({"recipe": job.recipe, "train_seed": job.seed, **row})
    return tables


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/tables"))
    names = [name.removeprefix(FOLDER) for name in recipe_names() if name.startswith(FOLDER)]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="decoders; default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="change a field of every recipe")
    parser.add_argument("--root", type=Path, default=Path("data/freedoom/test"), help="test frames")
    parser.add_argument("--limit", type=int, default=0, help="score so many frames; 0 for all")
    parser.add_argument(
        "--hide", help="what covers the scored frames of decoders that were trained on covered ones; default the same"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("."), help="where results/ is")
    options = parser.parse_args()
    jobs = make_jobs(options.only, options.seeds, options.set, options.work)
    for wave in waves(jobs):
        with ThreadPoolExecutor(options.processes) as pool:
            futures: list[Future[Job]] = [pool.submit(do, job, options.root, options.limit, options.hide) for job in wave]
            for future in futures:
                print(f"{future.result().run}: trained and scored", flush=True)
        for task, rows in collect(jobs).items():
            write_csv(options.results / TABLE.format(task=task), rows)


if __name__ == "__main__":
    main()
