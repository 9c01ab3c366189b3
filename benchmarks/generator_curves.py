"""How trainings of generators went: loss on held-out images by step, over the quarters of the process.

    python benchmarks/generator_curves.py runs/generator-64 runs/generator-128

Writes `results/generator_training.csv` and `.png`. The loss is that of the velocity, so the quarters weigh alike; those of much
noise say how well layouts are known, the first how well texture is. A loss depends on the size of the images: at 128 px
neighbours tell more of a pixel.
"""

import argparse
import json
import shlex
from pathlib import Path

import torch
from matplotlib.figure import Figure

from noise2map.report.plots import save_figure
from noise2map.report.tables import write_csv
from noise2map.runs.provenance import provenance

RESULTS = Path(__file__).parent.parent / "results"
LOSSES = {
    "eval_loss": "all",
    "eval_loss_q1": "little noise",
    "eval_loss_q2": "second quarter",
    "eval_loss_q3": "third quarter",
    "eval_loss_q4": "much noise",
}
TICKS = (0.02, 0.04, 0.06, 0.1, 0.15)


def read_curve(run: Path) -> list[dict[str, float | str]]:
    """One row for each look at the held-out images."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    looks = [record for record in records if "eval_loss" in record]
    if not looks:
        raise ValueError(f"{run / 'metrics.jsonl'} holds no eval_loss; expected a training with train.eval_every above 0")
    return [{"run": run.name, "step": look["step"]} | {name: look[name] for name in LOSSES} for look in looks]


def draw_curves(curves: list[list[dict[str, float | str]]]) -> Figure:
    """A panel for each run, side by side on one scale."""
    figure = Figure(figsize=(4.2 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, curve in zip(panels, curves, strict=True):
        for name, title in LOSSES.items():
            style = {"color": "black", "linewidth": 2.2} if name == "eval_loss" else {}
            panel.plot([row["step"] for row in curve], [row[name] for row in curve], marker="o", label=title, **style)
        panel.set(title=curve[0]["run"], xlabel="step of 16 images", yscale="log")
        panel.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("loss on held-out images")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def main() -> None:
    """Reads the runs, writes table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of noise2map train generator")
    options = parser.parse_args()
    curves = [read_curve(run) for run in options.runs]
    record = provenance(torch.device("cpu"), torch.bfloat16, seed=0)  # as the recipes say
    record["command"] = shlex.join(["python", "benchmarks/generator_curves.py", *map(str, options.runs)])
    write_csv(RESULTS / "generator_training.csv", [row | record for curve in curves for row in curve])
    save_figure(RESULTS / "generator_training.png", draw_curves(curves))


if __name__ == "__main__":
    main()
