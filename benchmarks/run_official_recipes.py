"""One official recipe of each family, shortened, on Freedoom in that dataset's own layout: does its loss go down?

Frames are rendered at a fitting size, exported, trained on for some hundred iterations (smaller crops, short warm-up, no pretrained
backbone; every change is printed and recorded) and a few frames are scored under the official protocol. What is there already is
not made again, an interrupted run is gone on with: run the same command again. To be called in the root of the repository.

python benchmarks/run_official_recipes.py                                # 300 iterations each, about 40 minutes of one core
python benchmarks/run_official_recipes.py --iterations 5 --work /tmp/try --results /tmp/try      # does it work at all
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noise2map.report.plots import save_figure, training_plot
from noise2map.report.tables import read_csv, write_csv
from noise2map.runs.run_directory import METRICS_FILE, read_metrics

NOISE2MAP = str(Path(sys.executable).with_name("noise2map"))
EVALUATION_STEPS = 3
SCORES = ("mIoU", "aAcc", "delta1", "abs_rel", "rmse")


@dataclass(frozen=True)
class Family:
    """A family of recipes.

    Attributes:
        title: In the plot.
        recipe: Its smallest recipe.
        layout: Dataset whose layout it reads.
        frame: Size of the rendered frames, ``WIDTHxHEIGHT``: like the dataset's, or as large as its crops need.
        crop: Size of the training crops, ``WIDTHxHEIGHT``; the published ones are nine to twenty times as large.
        warmup: Iterations of warm-up as a share of all. The published shares are 1/107 and 1/3.
    """

    title: str
    recipe: str
    layout: str
    frame: str
    crop: str
    warmup: float


FAMILIES = (
    Family("ADE20K, Swin-T", "ade20k-swin-t", "ade20k", "640x480", "160x160", 0.1),
    Family("Cityscapes, ConvNeXt-T", "cityscapes-convnext-t", "cityscapes", "640x480", "224x112", 0.1),
    Family("KITTI, Swin-T", "kitti-swin-t", "kitti", "1280x720", "224x112", 1 / 3),
    Family("NYU-Depth V2, Swin-T", "nyu-swin-t", "nyu", "640x480", "176x144", 1 / 3),
)


def overrides(family: Family, data: Path, iterations: int) -> list[str]:
    """What is changed in a recipe so that it ends today."""
    log_every = max(1, iterations // 30)
    save_every = max(log_every, iterations // 3 // log_every * log_every)
    return [
        f"data.root={data}",
        "model.backbone_from=none",
        f"data.crop={family.crop}",
        "train.bf16=true",
        "train.batch_size=1",
        "train.total_batch=1",
        f"train.iterations={iterations}",
        f"schedule.warmup_iterations={max(1, round(family.warmup * iterations))}",
        f"train.log_every={log_every}",
        f"train.save_every={save_every}",
        "train.keep=1",
        "train.eval_every=0",
        "train.eval_steps=[1]",
        "train.sample_images=0",
        "train.threads=1",
    ]


def call(*words: str | Path) -> None:
    """Run a ``noise2map`` command, printed first; its failure ends this script."""
    command = [NOISE2MAP, *map(str, words)]
    print("$", shlex.join(["noise2map", *command[1:]]), flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"# {after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.0f} s of processor time", flush=True)


def make_data(family: Family, work: Path, frames: int, held_out: int) -> Path:
    """Freedoom in the layout of a family: rendered and exported unless it is there."""
    data = work / family.layout
    if data.is_dir():
        return data
    rendered = work / f"frames-{family.frame}"
    for split, count in (("train", frames), ("test", held_out)):
        options = ["--split", split, "--frames", str(count), "--size", family.frame, "--workers", "1"]
        call("data", "freedoom", "--out", rendered / split, *options)
    call("data", "export", "--layout", family.layout, "--from", rendered, "--out", data)
    return data


def train(family: Family, data: Path, run: Path, iterations: int) -> list[str]:
    """Train unless the trained model is there; returns the words of the command."""
    words = ["train", f"official/{family.recipe}", "--out", str(run)]
    for change in overrides(family, data, iterations):
        words += ["--set", change]
    if not (run / "final" / "model.safetensors").is_file():
        call(*words, *["--resume"] * (run / METRICS_FILE).is_file())
    return words


def evaluate(family: Family, data: Path, run: Path) -> dict[str, Any]:
    """Score the trained model under the official protocol unless that has been done; returns the row."""
    out = run / "evaluation"
    if not (out / "evaluation.json").is_file():
        options = ["--protocol", "official", "--steps", str(EVALUATION_STEPS), "--resamples", "0", "--out", str(out)]
        call("evaluate", "--model", run / "final", "--dataset", family.layout, "--root", data, *options)
    return json.loads((out / "evaluation.json").read_text())["rows"][0]


def losses(run: Path) -> list[dict[str, float]]:
    """Iteration and mean loss since the record before."""
    return [{"step": record["step"], "loss": record["loss"]} for record in read_metrics(run) if "loss" in record]


def mean_loss(records: list[dict[str, float]], first: float, last: float) -> float:
    """Mean of the records of the iterations above ``first`` and up to ``last``."""
    inside = [record["loss"] for record in records if first < record["step"] <= last]
    return sum(inside) / len(inside)


def result_row(family: Family, run: Path, words: list[str], iterations: int, scored: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run."""
    window, records = min(50, iterations // 2), losses(run)
    config = json.loads((run / "config.json").read_text())["recipe"]
    return {
        "family": family.title,
        "recipe": f"official/{family.recipe}",
        "iterations": iterations,
        "pictures_per_iteration": config["train"]["total_batch"],
        "crop": config["data"]["crop"],
        "window": window,
        "loss_first": mean_loss(records, 0, window),
        "loss_last": mean_loss(records, iterations - window, iterations),
        "test_protocol": scored["test_protocol"],
        "dials": scored["protocol"],
        "images": scored["images"],
        **{name: scored.get(name, "") for name in SCORES},
        **{name: scored[name] for name in ("device", "seed", "noise2map", "torch", "commit", "date")},
        "command": shlex.join(["noise2map", *words]),
        "evaluation": scored["command"],
    }


def plot(runs: dict[str, list[dict[str, float]]], rows: list[dict[str, Any]], path: Path) -> None:
    """Loss over iterations, each divided by the mean of its first iterations so that four kinds of loss share an axis."""
    start = {row["family"]: row["loss_first"] for row in rows}
    records = [
        {"iteration": one["step"], title: one["loss"] / start[title]}
        for title, found in runs.items()
        for one in found
        if title in start
    ]
    first = rows[0]["window"]
    figure = training_plot(records, list(runs), x_name="iteration", title="Official recipes, shortened, on Freedoom")
    figure.axes[0].set_ylabel(f"training loss / mean of the first {first} iterations")
    figure.axes[0].set_ylim(bottom=0)
    save_figure(path, figure)


def main() -> None:
    """Run all families one after the other; the table and the picture are written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--frames", type=int, default=240, help="training frames of each size")
    parser.add_argument("--held-out", type=int, default=4, help="frames that are scored")
    parser.add_argument("--only", nargs="+", choices=[family.recipe for family in FAMILIES], help="some of the families")
    parser.add_argument("--work", type=Path, default=Path("runs/official"), help="folder of frames, exports and runs")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the table and the picture")
    options = parser.parse_args()
    table = options.results / "official_recipes.csv"
    options.results.mkdir(parents=True, exist_ok=True)
    rows = {row["family"]: row for row in (read_csv(table) if table.is_file() else [])}
    for family in FAMILIES:
        if options.only and family.recipe not in options.only:
            continue
        data = make_data(family, options.work, options.frames, options.held_out)
        run = options.work / f"{family.recipe}-{options.iterations}"
        words = train(family, data, run, options.iterations)
        scored = evaluate(family, data, run)
        rows[family.title] = result_row(family, run, words, options.iterations, scored)
        done = [rows[one.title] for one in FAMILIES if one.title in rows]
        write_csv(table, done)
        runs = {one.title: losses(options.work / f"{one.recipe}-{options.iterations}") for one in FAMILIES if one.title in rows}
        plot({title: found for title, found in runs.items() if found}, done, options.results / "official_recipes.png")
        row = rows[family.title]
        scores = ", ".join(f"{name} {row[name]:.4g}" for name in SCORES if row[name] != "")
        print(
            f"== {family.title}: loss {row['loss_first']:.4g} -> {row['loss_last']:.4g}; {scores} ({row['images']} frames)",
            flush=True,
        )


if __name__ == "__main__":
    main()
