"""Decoders on one frozen encoder, several seeds of each, trained and evaluated: the rows of ``results/decoders_*.csv``.

One process on each core; what is there already is not made again, an interrupted run is gone on with: run the same command again.
The features of the encoder are computed by the first run that needs them. Decoders of what is visible are scored twice: by the map
that they give in a run, and by the eight that they draw. To be called in the root of the repository.

    python benchmarks/train_tables.py --work runs/tables
    python benchmarks/train_tables.py --work /tmp/try --only depth-laplace depth-nodiffusion --seeds 0 --set train.iterations=20
"""

import argparse
import functools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decoder_tables

from noise2map.models.distributions.whole_maps import WHOLE_MAP_OBJECTIVES
from noise2map.runs.run_directory import FINAL_DIRECTORY
from noise2map.training.maps.recipe import Recipe, load_recipe
from noise2map.training.recipe_files import recipe_names

FOLDER = "decoders/"
STEPS = ("1", "3", "10")
SAMPLES = decoder_tables.MAPS
RESAMPLES = 300
WIDTHS = "0,2,8,inf"  # cells of the smooth fields that draw maps of what is visible
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

    @functools.cached_property
    def read(self) -> Recipe:
        """Its recipe as it is read."""
        return load_recipe(FOLDER + self.recipe, self.settings)

    @property
    def cache(self) -> str | None:
        """The folder of the features that it reads."""
        return self.read.train.cache_features

    @property
    def plain(self) -> Path:
        """The final model of the decoder without diffusion of this task and seed, with which it is compared."""
        return self.work / f"{self.recipe.partition('-')[0]}-nodiffusion-seed{self.seed}" / FINAL_DIRECTORY

    def train(self) -> list[str]:
        """The command that trains it."""
        sets = [word for change in self.settings for word in ("--set", change)]
        return ["noise2map", "train", FOLDER + self.recipe, "--out", str(self.run), *sets]

    def evaluations(self, root: Path, limit: int, hide: str | None = None) -> dict[str, list[str]]:
        """The commands that score it, by the name of their folder.

        Args:
            root: test frames; places of the bird's-eye view are where the recipe says.
            limit: so many of them; 0 for all, or for `PLACES`.
            hide: what covers the frames of decoders of what is hidden; default what covered them in training.
        """
        data, above = self.read.data, self.read.model.task == "bev"
        words = ["noise2map", "evaluate", "--model", str(self.run / FINAL_DIRECTORY)]
        words += ["--dataset", data.name, "--root", data.root or SURROUND if above else str(root)]
        words += ["--limit", str(limit or PLACES if above else limit), "--overwrite"]
        words += ["--sample-scores", "--cluster", "map", "--resamples", str(RESAMPLES)]
        drawn = ["--ensemble", str(SAMPLES)]
        if data.hide is None and not above:
            found = {"one": words + self._one_map(), "drawn": words + drawn + self._drawn_maps() if self._drawn_maps() else []}
        else:
            words += ["--cells", "all"] if above else ["--hide", hide or str(data.hide)]
            words += [*drawn, "--steps", *(STEPS[:1] if self._without_diffusion else STEPS)]
            found = {"evaluation": [*words, "--sampling", "field" if self._without_diffusion else "diffusion,field"]}
        return {name: [*command, "--out", str(self.run / name)] for name, command in found.items() if command}

    @property
    def _config(self) -> dict[str, Any]:
        return self.read.model.config

    @property
    def _without_diffusion(self) -> bool:
        return self._config.get("diffusion") is False

    def _one_map(self) -> list[str]:
        """How the map that a run gives is asked for, and what it is compared with."""
        one_pass = self._config.get("sampling") in ("one_pass", "field")
        one_call = self._without_diffusion or self._config.get("num_inference_steps") == 1 or one_pass
        words = ["--steps", *(STEPS[:1] if one_call else STEPS)]
        words += ["--sampling", "one_pass"] if one_pass else []
        return words + (["--compare", str(self.plain)] if self.plain.is_dir() and self.plain.parent != self.run else [])

    def _drawn_maps(self) -> list[str]:
        """How maps are drawn: in steps, or from one pass, if that states a distribution."""
        if not self._without_diffusion:
            return ["--steps", *STEPS, "--sampling", "diffusion"]
        objective = self._config.get("objective")
        field = ["--steps", "1", "--sampling", "field"]
        if objective in WHOLE_MAP_OBJECTIVES:  # draw logits: the width of a field has no part in it
            return field
        states = self.read.model.task == "segmentation" or objective == "laplace"
        return [*field, "--field-smoothness", WIDTHS] if states else []


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


def train(job: Job) -> Job:
    """Train a decoder, as far as that has not been done."""
    run(job.train(), job.work / "logs" / f"{job.run.name}.txt")
    return job


def evaluate(job: Job, root: Path, limit: int, hide: str | None = None) -> list[Path]:
    """Score a decoder, as far as that has not been done; the folders of its evaluations."""
    commands = job.evaluations(root, limit, hide)
    for name, command in commands.items():
        if not (job.run / name / "evaluation.csv").exists():
            run(command, job.work / "logs" / f"{job.run.name}.txt")
    return [job.run / name for name in commands]


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
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the tables")
    options = parser.parse_args()
    for seed in options.seeds:  # the tables of one seed are whole before the next begins
        jobs = make_jobs(options.only, [seed], options.set, options.work)
        for wave in waves(jobs):
            with ThreadPoolExecutor(options.processes) as pool:
                for job in pool.map(train, wave):
                    print(f"{job.run}: trained", flush=True)
        with ThreadPoolExecutor(options.processes) as pool:
            score = functools.partial(evaluate, root=options.root, limit=options.limit, hide=options.hide)
            for folders in pool.map(score, jobs):
                decoder_tables.add(folders, options.results)
                print(f"{folders[0].parent}: scored", flush=True)


if __name__ == "__main__":
    main()
