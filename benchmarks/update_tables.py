"""Evaluations -> ``results/*.csv`` -> the tables of docs/results.md, of the README and of the cards.

noise2map evaluate --model freedoom-segmentation-tiny ... --out out/segmentation
python benchmarks/update_tables.py --collect segmentation out/segmentation  # evaluate_..., differences_....csv
python benchmarks/update_tables.py --collect-guidance out/guidance out/other  # evaluate_generator.csv, differences_generator.csv
python benchmarks/update_tables.py --collect-guidance-by-geometry out/shipped out/thirds  # guidance_by_geometry*.csv
python benchmarks/update_tables.py --collect-guidance-settings out/weak-25 out/weak-100  # guidance_settings*.csv
python benchmarks/update_tables.py --collect-guidance-windows out/weak-window-low out/rows-window-low  # guidance_windows*.csv
python benchmarks/update_tables.py --collect-nearest out/shipped-window-low     # nearest_training.csv
python benchmarks/update_tables.py --collect-decoders out/ev-energy-0 out/ev-ssn-0  # decoders_completion.csv
python benchmarks/update_tables.py --collect-predictor runs/predictor runs/other  # depth_predictor.csv
python benchmarks/update_tables.py --collect-application out/application      # depth_from_generated*.csv and .png
python benchmarks/update_tables.py --collect-trust calibrated/depth shifts/depth  # calibration.csv, shifts.csv
python benchmarks/update_tables.py                                  # rewrites the tables from results/*.csv
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decoder_tables
import hidden_tables
import visible_tables
from public_code.tables import ratio_table, seconds_table

from noise2map.ablation.report import summary
from noise2map.evaluation.card_scores import scores_for_card
from noise2map.evaluation.official import published_scores
from noise2map.generation.evaluation.report import short_row
from noise2map.hub.cards import model_index, with_metadata
from noise2map.report.tables import markdown_table, read_csv, replace_block, write_csv
from noise2map.zoo import available, task_of_folder

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
ZOO = ROOT / "src" / "noise2map" / "zoo"

SCORES = {
    "segmentation": {"mIoU": ("mIoU %", 100, 1), "aAcc": ("pixel accuracy %", 100, 1)},
    "depth": {"delta1": ("δ1 %", 100, 1), "abs_rel": ("AbsRel", 1, 3), "rmse": ("RMSE m", 1, 2)},
    "bev": {"mIoU_max": ("mIoU max %", 100, 1), "mIoU_50": ("mIoU at 0.5 %", 100, 1)},
}
GENERATOR = "freedoom-generator-64"
BROKEN_LAYOUTS = {
    "none": "without guidance",
    "DCG": "guided",
    "DCG, neighbor": "guided by another image's gradient",
    "none, equal cost": "without guidance, equal cost",
    "references": "real frames",
}
BEV_SENSORS = {"camera": "camera", "fusion": "camera + LiDAR"}
TITLES = {
    "ade20k": "ADE20K",
    "cityscapes": "Cityscapes",
    "kitti": "KITTI",
    "nyu": "NYU-Depth V2",
    "swin": "Swin",
    "convnext": "ConvNeXt",
}
UNITS = {"mIoU": ("mIoU", " %"), "abs_rel": ("REL", ""), "rmse": ("RMSE", " m")}
UNCERTAINTY = {
    "segmentation": ("least_confidence", "entropy", "step_flip", "sample_variance", "mutual_information"),
    "depth": ("sample_variance", "step_flip"),
    "bev": ("least_confidence", "entropy", "step_flip", "sample_variance", "mutual_information"),
}
SHOWN = {task: next(iter(SCORES[task].items())) for task in SCORES}
WHAT = {
    "freedoom-segmentation-tiny": "ten classes, 160x120; 4.3 million parameters",
    "freedoom-depth-laplace-tiny": "metres and how far off they may be, 160x120; 4.1 million",
    "freedoom-normals-tiny": "surface normals and how far off they may be; 4.1 million",
    "freedoom-completion-tiny": "ten classes, also behind a cover; 4.0 million",
    "freedoom-bev-camera-completion-tiny": "six layers from six views, also where nobody sees; 4.3 million",
    "freedoom-bev-completion-tiny": "six layers from six views and LiDAR, also where nobody sees; 4.2 million",
    "freedoom-generator-64": "images of 64x64 with depth predictor and prior; 1.9 million",
}
# Model of one call: its table in results/, which row, the score, its title, factor and digits.
ONE_CALL = {
    "freedoom-depth-laplace-tiny": ("one_pass_depth", {}, ("abs_rel", "AbsRel", 1, 3)),
    "freedoom-normals-tiny": ("one_pass_normals", {}, ("mean_angle", "mean angle, degrees", 1, 1)),
    "freedoom-bev-camera-completion-tiny": (
        "bev_all_cells",
        {"images": 270},
        ("mIoU_fitted_visible", "mIoU at its thresholds, visible %", 100, 1),
    ),
    "freedoom-bev-completion-tiny": ("bev_all_cells", {"images": 270}, ("mIoU_max_visible", "mIoU max, visible %", 100, 1)),
    "freedoom-completion-tiny": ("completion", {"sampling": "diffusion", "steps": 1}, ("mIoU_hidden", "mIoU, hidden %", 100, 1)),
}
SPEED = [
    ("encode, ms", "encode", "ms", 0),
    ("one step, ms", "step", "ms", 0),
    ("step over its matrix products alone", "step", "step_over_floor", 2),
    ("the same step with the faster `grid_sample`, eager or compiled, over ours", "step", "grid_sample_over_step", 2),
    ("encode and three steps, ms", "all 3", "ms", 0),
]
POOLING = {"segment sum": "segment sum", "scatter": "scatter of the volume"}
GUIDANCE_STAGES = {
    "both, all gradients": "both, by `loss.backward()` with the whole graph and all weight gradients",
    "from the output, all gradients": "backward pass from the U-Net's output, all weight gradients",
}
CORRUPTIONS = {
    "none": "none: as it is",
    "tint": "tint: red up, blue down",
    "channels": "channels: exchanged",
    "contrast": "contrast: halved",
    "warp": "warp: smooth field, about 8 px",
    "ripple": "ripple: rows shifted by up to 5 px",
    "patch": "patch: a quarter from another frame",
    "halves": "halves: right half from another frame",
}
NOTE = (
    "\n\nError-AUROC (higher is better, 0.5 is chance) / AUSE (lower is better) of each kind of uncertainty. With one sample, "
    "sample variance and mutual information are over its steps:\n\n"
)
BY_GEOMETRY = ("guidance_by_geometry", "guidance_by_geometry_differences")
SETTINGS = ("guidance_settings", "guidance_settings_differences")
WINDOWS = ("guidance_windows", "guidance_windows_differences")
SUMMED_UP = {  # title, factor, decimals
    "floor_at_eye": ("floor fits the eye height, %", 100, 0),
    "horizon_deg": ("horizon off by, °", 1, 1),
    "KID": ("KID x1000", 1000, 0),
    "dKID": ("dKID x1000", 1000, 0),
}
NOISE_LEVELS = (1, 0.95, 0.7, 0.5, 0.3, 0.1, 0)


def collect(name: str, folders: list[Path]) -> None:
    """Merges the rows of evaluations of one task."""
    documents = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    rows, seen = [], set()
    for row in (row for document in documents for row in _with_layers(document)):
        key = (row["model"], row["protocol"], row["images"])
        if key not in seen:
            seen.add(key)
            rows.append(row)
    write_csv(RESULTS / f"evaluate_{name}.csv", rows)
    write_csv(RESULTS / f"differences_{name}.csv", [row for document in documents for row in document["differences"]])


def collect_guidance(folders: list[Path], names: tuple[str, str] = ("evaluate_generator", "differences_generator")) -> None:
    """Takes over the tables of runs of ``noise2map evaluate generator``; the first is shown in full. Other runs stay, behind."""
    fresh = {folder.name for folder in folders}
    for source, name in zip(("generator", "differences"), names):
        path = RESULTS / f"{name}.csv"
        found = [{"run": folder.name} | row for folder in folders for row in read_csv(folder / f"{source}.csv")]
        found += [row for row in read_csv(path) if row["run"] not in fresh]
        columns = list(dict.fromkeys(column for row in found for column in row))
        write_csv(path, [{column: row.get(column) for column in columns} for row in found])


def collect_application(folders: list[Path]) -> None:
    """Takes over the tables of runs of ``noise2map experiment depth-from-generated``, and the plot of the first; others stay."""
    names = {folder.name for folder in folders}
    for source, name in (("summary", ""), ("differences", "_differences"), ("runs", "_runs")):
        path = RESULTS / f"depth_from_generated{name}.csv"
        rows = [{"run": folder.name} | row for folder in folders for row in read_csv(folder / f"{source}.csv")]
        rows += [row for row in read_csv(path) if row["run"] not in names]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        write_csv(path, [{column: row.get(column) for column in columns} for row in rows])
    shutil.copy(folders[0] / "summary.png", RESULTS / "depth_from_generated.png")


def collect_trust(folders: list[Path]) -> None:
    """Adds calibrations and shifts to their tables, in place of earlier ones of the same models."""
    for name, key in (("calibration.csv", "model"), ("shifts.csv", "model")):
        fresh = [row for folder in folders if (folder / name).is_file() for row in read_csv(folder / name)]
        old = read_csv(RESULTS / name) if (RESULTS / name).is_file() else []
        write_csv(RESULTS / name, [row for row in old if row[key] not in {one[key] for one in fresh}] + fresh)


def collect_nearest(folders: list[Path]) -> None:
    """Takes over how near the images of one generator are to those it was trained on."""
    shutil.copy(folders[0] / "nearest.csv", RESULTS / "nearest_training.csv")


def collect_predictor(folders: list[Path]) -> None:
    """Takes over how accurate depth predictors are; the first is the shipped one, others stay, behind."""
    path, fresh = RESULTS / "depth_predictor.csv", {folder.name for folder in folders}
    rows = [{"run": folder.name} | row for folder in folders for row in read_csv(folder / "accuracy.csv")]
    write_csv(path, rows + [row for row in read_csv(path) if row["run"] not in fresh])


def shift_table(model: str, images: int) -> str:
    """What is left of a calibration under each shift, of one model on so many images."""
    rows = [row for row in read_csv(RESULTS / "shifts.csv") if (row["model"], int(row["images_scored"])) == (model, images)]
    lines: dict[tuple[Any, Any], dict[str, Any]] = {}
    variants = [name for name in ("before", "constant interval", "after") if any(row["variant"] == name for row in rows)]
    for row in rows:
        where = {
            "shift": row["shift"].replace("_", " "),
            "strength": f"{row['strength']:g}" if row["strength"] else "",
            "error": f"{row['error']:.3f}",
        }
        line = lines.setdefault((row["shift"], row["strength"]), where)
        if row["variant"] in variants:
            line[f"gap %, {row['variant']}"] = f"{100 * row['ece']:.1f}"
            line[f"in 90 %, {row['variant']}"] = f"{100 * row['coverage_90']:.1f}"
        if row["variant"] == "after":
            line["error-AUROC"] = f"{row['auroc']:.3f}"
            line |= {"classes in a set": f"{row['size_90']:.2f}"} if isinstance(row.get("size_90"), float) else {}
    names = [f"{score}, {variant}" for score in ("gap %", "in 90 %") for variant in variants]
    found = list(lines.values())
    return markdown_table(found, list(dict.fromkeys(("shift", "strength", "error", *names, *found[0]))))


def class_calibration_table() -> str:
    """Calibration error of classes by method, on maps that were left out and on other maps."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in read_csv(RESULTS / "class_calibration.csv"):
        way = "mean over steps" if "steps," in row["decoding"].split(", ", 1)[1] + "," else "last step"
        line = lines.setdefault((way, row["method"]), {"3 steps": way, "method": row["method"]})
        low, high = (f"{row[f'ece_{end}_percent']:.1f}" for end in ("low", "high"))
        line[f"ECE %, {row['scored']}"] = f"{row['ece_percent']:.2f} [{low}, {high}]"
        line[f"of a single map, {row['scored']}"] = f"{row['map_ece_percent']:.1f}"
    return markdown_table(list(lines.values()))


def guidance_table(table: str) -> str:
    """Scores of the generator by setting of its guidance.

    Args:
        table: ``"guidance"``, ``"scales"`` or ``"priors"``, of the first run that has it.
    """
    rows = [row for row in read_csv(RESULTS / "evaluate_generator.csv") if row["table"] == table]
    rows = [row for row in rows if row["run"] == rows[0]["run"]]
    return markdown_table([_guidance_row(row) for row in rows])


def generator_of(run: str) -> str:
    """The generator that a folder of images is called by, and steps and images where others have other numbers of them.

    `weak2-1024-window-low` is `weak2, 1,024 images`; `shipped-100steps-1024-window-low` is `shipped, 100 steps, 1,024 images`.
    """
    name, *numbers = run.removesuffix("-window-low").split("-")
    words = [f"{int(word.removesuffix('steps')):,} {'steps' if word.endswith('steps') else 'images'}" for word in numbers]
    return ", ".join([name, *words])


def geometry_guidance_table(source: str, of: str = "") -> str:
    """Guidance and its controls, by generator: folders of runs are named by their generators.

    Args:
        source: Of the rows, without its ending.
        of: The generator whose rows alone are shown; all without.
    """
    lines, seen = [], set()
    for row in read_csv(RESULTS / f"{source}.csv"):
        key = (row["run"], row["setting"])
        if key in seen or row["setting"] == "real" or not generator_of(row["run"]).startswith(of):
            continue
        seen.add(key)
        line = _guidance_row(row)
        kept = [name for name in line if name not in ("setting", "images", "off plane", "planar", "edges", "FID inf", "dFID inf")]
        start = {
            "generator": generator_of(row["run"]),
            "images": line["setting"],
            "steps": row["steps"] or "",
        }
        lines.append(start | {name: line[name] for name in kept})
    return markdown_table(lines, list(dict.fromkeys(name for line in lines for name in line)))


def guidance_differences_table(source: str) -> str:
    """Guided by consistency minus unguided images at equal cost; certain differences are bold.

    Args:
        source: Of the differences, without its ending.
    """
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_csv(RESULTS / f"{source}.csv"):
        if (row["this"], row["minus"]) == ("DCG", "none, equal cost"):
            runs.setdefault(generator_of(row["run"]), {}).setdefault(row["score"], row)
    scores = {name: (title.replace(", %", ", points"), *rest) for name, (title, *rest) in SUMMED_UP.items()}
    scores["upright_share"] = ("upright, points", 100, 1)
    lines = []
    for run, found in runs.items():
        line: dict[str, Any] = {"generator": run}
        for name, (title, factor, digits) in scores.items():
            row = found[name]
            value, low, high = (f"{factor * row[key]:+.{digits}f}" for key in ("difference", "low", "high"))
            line[title] = f"**{value}** [{low}, {high}]" if row["low"] > 0 or row["high"] < 0 else f"{value} [{low}, {high}]"
        lines.append(line)
    return markdown_table(lines)


def guidance_settings_table() -> str:
    """Scales, losses, steps, predictors and controls of one generator: rows of `guidance_settings.csv`, equal ones once."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in read_csv(RESULTS / f"{SETTINGS[0]}.csv"):
        if row["setting"] in ("real", "references"):
            continue
        scales = [f"{row[f'{loss}_scale']:g}" if row[f"{loss}_scale"] else "–" for loss in ("consistency", "prior")]
        line = {"setting": row["setting"], "DCG": scales[0], "DPG": scales[1], "steps": row["steps"], "images": row["images"]}
        for name, (title, factor, digits) in SUMMED_UP.items():
            value, low, high = (f"{factor * row[key]:.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
            line[title] = f"{value} [{low}, {high}]"
        lines.setdefault(tuple(line.values()), {"run": row["run"]} | line)
    return markdown_table(list(lines.values()))


def broken_layouts_table() -> str:
    """What guidance and its controls do to the generator whose rows were shuffled, in the words of the findings."""
    rows: dict[str, dict[str, Any]] = {}
    for row in read_csv(RESULTS / f"{BY_GEOMETRY[0]}.csv"):
        if row["run"] == "rows":
            rows.setdefault(row["setting"], row)
    lines = []
    for setting, title in BROKEN_LAYOUTS.items():
        row = rows[setting]
        line = {"rows generator": title, "floor fits the eye height": f"{100 * row['floor_at_eye']:.0f} %"}
        line |= {"horizon off by": f"{row['horizon_deg']:.1f}°", "upright": f"{100 * row['upright_share']:.0f} %"}
        line |= {f"{name} x1000": "" if row[name] is None else f"{1000 * row[name]:.0f}" for name in ("KID", "dKID")}
        lines.append(
            {name: f"**{value}**" if setting == "DCG" and name != "rows generator" else value for name, value in line.items()}
        )
    return markdown_table(lines)


def _guidance_row(row: dict[str, Any]) -> dict[str, Any]:
    """Scores of a setting, without the seconds, which were taken beside other work."""
    line = short_row({name: value for name, value in row.items() if value not in (None, "")})
    return {name: _three_digits(value) for name, value in line.items() if name != "s/image"}


def convention_table() -> str:
    """The settings of every run by what its scales mean."""
    lines = []
    for row in read_csv(RESULTS / "evaluate_generator.csv"):
        if row["table"] == "guidance" and row["setting"] != "references":
            line = {"convention": row["convention"], "reduction": row["reduction"]}
            line |= {"scales": f"{row['consistency_scale']:g}, {row['prior_scale']:g}"}
            lines.append(line | _guidance_row(row))
    return markdown_table(lines)


def block_table() -> str:
    """Depth that decoder blocks tell, from the most labelled images of the last run: δ1 by noise level."""
    rows = read_csv(RESULTS / "depth_predictor.csv")
    rows = [row for row in rows if row["run"] == rows[-1]["run"]]
    most = max(row["images_trained"] for row in rows)
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["images_trained"] == most:
            line = lines.setdefault(str(row["blocks"]), {"blocks": row["blocks"]})
            line[f"δ1 % at t = {row['timestep']}"] = f"{100 * row['delta1']:.1f}"
    return markdown_table([lines[name] for name in sorted(lines, key=lambda name: (len(name), name))])


def application_table() -> str:
    """Depth learnt from generated images, beside real ones: means over trainings with intervals."""
    lines = []
    for row in read_csv(RESULTS / "depth_from_generated.csv"):
        line = {"generator": row["run"], "training set": row["what"], "images": row["images"], "trainings": row["seeds"]}
        for name, title, factor, digits in (("delta1", "δ1 %", 100, 1), ("abs_rel", "AbsRel", 1, 3), ("rmse", "RMSE m", 1, 2)):
            value, low, high = (factor * row[key] for key in (name, f"{name}_low", f"{name}_high"))
            line[title] = f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        lines.append(line)
    return markdown_table(lines)


def predictor_table() -> str:
    """Depth scores of the strong and the weak branch of the first run, by number of labelled images and noise level."""
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    rows = read_csv(RESULTS / "depth_predictor.csv")
    for row in (row for row in rows if row["run"] == rows[0]["run"]):
        blocks = str(row["blocks"])
        key = (int(row["images_trained"]), blocks)
        branch = f"strong, blocks {blocks}" if "," in blocks else f"weak, block {blocks}"
        line = lines.setdefault(key, {"labelled images": key[0], "branch": branch})
        line[f"δ1 % / AbsRel at t = {row['timestep']}"] = f"{100 * row['delta1']:.1f} / {row['abs_rel']:.3f}"
    return markdown_table(list(lines.values()))


def _three_digits(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else value


def _with_layers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an evaluation, with the best IoU of each layer of a bird's-eye-view map."""
    layers = {(extra["model"], extra["protocol"]): extra.get("layers", {}) for extra in document["extras"]}
    return [
        row | {f"IoU_max_{layer}": one["IoU_max"] for layer, one in layers.get((row["model"], row["protocol"]), {}).items()}
        for row in document["rows"]
    ]


def score_table(task: str) -> str:
    """Scores by model and protocol, with 95 % intervals."""
    return markdown_table([_score_row(row, task) for row in read_csv(RESULTS / f"evaluate_{task}.csv")])


def _label(row: dict[str, Any], task: str) -> str:
    if task == "bev":
        sensors = next(words for name, words in BEV_SENSORS.items() if f"-{name}-" in row["model"])
        return f"{sensors}, {'no diffusion' if 'nodiffusion' in row['model'] else 'DDP'}"
    return "DDP" if row["model"] == f"freedoom-{task}-tiny" else "no diffusion"  # the model of --compare is named by its folder


def _score_row(row: dict[str, Any], task: str) -> dict[str, Any]:
    line: dict[str, Any] = {
        "model": _label(row, task),
        "steps": row["steps"] if row["steps"] != "auto" else f"auto ({row['mean_steps']:.1f})",
        "samples": row["ensemble"],
        "average": row["average"],
        "images": row["images"],
    }
    for score, (title, factor, digits) in SCORES[task].items():
        value, low, high = (row[key] * factor for key in (score, f"{score}_low", f"{score}_high"))
        line[title] = f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    if task == "bev":
        line |= {name.removeprefix("IoU_max_"): f"{100 * row[name]:.0f}" for name in row if name.startswith("IoU_max_")}
    if task == "segmentation":
        line["ECE %"] = f"{100 * row['ece']:.1f}"
    return line


def uncertainty_table(task: str) -> str:
    """How well each kind of uncertainty finds the errors: error-AUROC and AUSE, by protocol."""
    lines = []
    for row in read_csv(RESULTS / f"evaluate_{task}.csv"):
        line: dict[str, Any] = {"model": _label(row, task)}
        line |= {"steps": row["steps"], "samples": row["ensemble"], "average": row["average"]}
        for kind in UNCERTAINTY[task]:
            auroc, ause = row.get(f"{kind}_auroc"), row.get(f"{kind}_ause")
            line[kind.replace("_", " ")] = "–" if auroc in (None, "") else f"{auroc:.3f} / {ause:.3f}"
        lines.append(line)
    return markdown_table([line for line in lines if any("/" in str(value) for value in line.values())])


def noise_table() -> str:
    """Loss of one decoder call by level and by the map that it is shown."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for task in SCORES:
        path = RESULTS / f"noise_levels_{task}.csv"
        for row in read_csv(path) if path.exists() else []:
            if row["t"] in NOISE_LEVELS and not row["model"].endswith("nodiffusion"):
                line = lines.setdefault((row["model"], row["shown"]), {"model": row["model"], "shown": row["shown"]})
                line[f"level {row['t']:g}"] = f"{row['loss']:.4f}"
    return markdown_table(list(lines.values()))


def shipped_table() -> str:
    """What ships: one score of each model of maps, at one step, beside that of the same network without diffusion."""
    lines = []
    for task, (score, (title, factor, digits)) in SHOWN.items():
        rows = [row for row in read_csv(RESULTS / f"evaluate_{task}.csv") if row["steps"] == 1 and row["ensemble"] == 1]
        for row in (row for row in rows if row["model"] in available()):
            bare = next(other for other in rows if other["model"] == f"runs/{row['model']}-nodiffusion/final")
            value, low, high = (f"{row[name] * factor:.{digits}f}" for name in (score, f"{score}_low", f"{score}_high"))
            lines.append(
                {
                    "model": f"[{row['model']}](src/noise2map/zoo/{row['model']}/README.md)",
                    "what": WHAT[row["model"]],
                    "score at one step": f"{title} {value} [{low}, {high}]",
                    "without diffusion": f"{bare[score] * factor:.{digits}f}",
                }
            )
    for name, (table, wanted, (score, title, factor, digits)) in ONE_CALL.items():
        rows = [row for row in read_csv(RESULTS / f"evaluate_{table}.csv") if row["model"] == name]
        row = next(row for row in rows if all(row[key] == value for key, value in wanted.items()))
        value, low, high = (f"{row[column] * factor:.{digits}f}" for column in (score, f"{score}_low", f"{score}_high"))
        line = {"model": f"[{name}](src/noise2map/zoo/{name}/README.md)", "what": WHAT[name]}
        lines.append(line | {"score at one step": f"{title} {value} [{low}, {high}]", "without diffusion": "–"})
    line = {"model": f"[{GENERATOR}](src/noise2map/zoo/{GENERATOR}/README.md)", "what": WHAT[GENERATOR]}
    lines.append(line | {"score at one step": "–", "without diffusion": "–"})
    return markdown_table(lines)


def dfid_table() -> str:
    """How far each corruption of real frames raises FID and dFID."""
    lines = []
    for row in read_csv(RESULTS / "dfid_validation.csv"):
        line: dict[str, Any] = {"corruption": CORRUPTIONS[row["corruption"]], "kind": row["kind"]}
        for name, digits in (("FID", 2), ("dFID", 3)):
            line[name] = f"{row[name]:.{digits}f}"
            rise = [row.get(f"{name}_rise{end}") for end in ("", "_low", "_high")]
            known = rise[0] not in (None, "")
            line[f"rise of {name}"] = "{0:.{3}f} [{1:.{3}f}, {2:.{3}f}]".format(*rise, digits) if known else "–"
        lines.append(line)
    return markdown_table(lines)


def speed_table() -> str:
    """Milliseconds and ratios of the published Swin-T model by type and mode, from the run that compared all four."""
    rows = [row for row in read_csv(RESULTS / "bench_model.csv") if row["rounds"] == 5]
    ways = list(dict.fromkeys((row["dtype"], row["mode"]) for row in rows))
    found = {(row["dtype"], row["mode"], row["stage"]): row for row in rows}
    for row in rows:  # the rival of a type is the faster of its two variants, whatever ours is
        if row["stage"] == "step":
            rival = min(one["grid_sample_ms"] for one in rows if (one["dtype"], one["stage"]) == (row["dtype"], "step"))
            row["grid_sample_over_step"] = rival / row["ms"]
    lines = []
    for title, stage, column, digits in SPEED:
        line = {"": title}
        lines.append(line | {" ".join(way): f"{found[(*way, stage)][column]:.{digits}f}" for way in ways})
    return markdown_table(lines)


def pooling_table() -> str:
    """Time and memory of the camera features' pooling, beside the plain way."""
    lines = []
    for row in read_csv(RESULTS / "bench_bev.csv"):
        line = {"method": POOLING[row["method"]], "stage": row["stage"]}
        line["ms"] = f"{row['ms']:,.1f}" if row["ms"] < 100 else f"{row['ms']:,.0f}"
        more = row["scatter_over_this"]
        line["the plain way takes"] = "" if more in (None, "") else f"{more:.0f} times as long" if more > 1 else "1"
        lines.append(line | {"working memory, MiB": f"{row['working_mb']:,.0f}"})
    return markdown_table(lines)


def guidance_cost_table(shipped: bool) -> str:
    """What guidance adds to a step, of the shipped generator or of U-Nets of the published shape, a pair of columns for each."""
    lines: dict[str, dict[str, str]] = {}
    for row in read_csv(RESULTS / "bench_guidance.csv"):
        if (row["unet"] == GENERATOR) != shipped:
            continue
        line = lines.setdefault(row["stage"], {"one DDIM step": GUIDANCE_STAGES.get(row["stage"], row["stage"])})
        network = "" if shipped else f", {row['unet'].split(', ')[1]} at {row['size']} px, {row['dtype']}"
        line |= {f"time{network}": f"{row['over_unguided']:.2f}", "operations": f"{row['gflop_over_unguided']:.2f}"}
        line[f"kept{network}" if network else "kept for the backward pass"] = size_of(row["kept_mb"])
    return markdown_table(list(lines.values()))


def size_of(mib: float) -> str:
    """MiB, or GiB if it is much."""
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def published_shape_table() -> str:
    """What each command takes on a U-Net of the published shape, see ``benchmarks/published_shape.py``."""
    rows = read_csv(RESULTS / "published_shape.csv")
    return markdown_table(
        [
            {
                "command": row["stage"],
                "processor seconds": f"{row['cpu_s']:.0f}",
                "most memory": size_of(row["peak_mb"]),
            }
            for row in rows
        ]
    )


def command_table() -> str:
    """The commands that train and score each published model, with the published scores."""
    models: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in published_scores():
        if row["dataset"] not in TITLES:
            continue  # bird's-eye view has no published recipe here
        models.setdefault((row["dataset"], row["backbone"], row["self_aligned"]), []).append(row)
    lines = []
    for (dataset, backbone, aligned), rows in models.items():
        name = f"{dataset}-{backbone}" + "-aligned" * (aligned == "yes")
        kind, letter = backbone.split("-")
        steps = sorted({int(row["steps"]) for row in rows if row["protocol"] == "official"})
        run = f"noise2map evaluate --model runs/{name}/final --dataset {dataset} --root DIR --protocol official --steps"
        lines.append(
            {
                "model": f"{TITLES[dataset]}, {TITLES[kind]}-{letter.upper()}" + ", self-aligned" * (aligned == "yes"),
                "train": f"`noise2map train official/{name} --set data.root=DIR`",
                "evaluate": f"`{run} {' '.join(map(str, steps))}`",
                "published": _published(rows, "official"),
                "multi-scale": _published(rows, "multi-scale") or "–",
            }
        )
    return markdown_table(lines)


def _published(rows: list[dict[str, str]], protocol: str) -> str:
    """``"mIoU 82.3, 82.6, 82.6 %"``: a score at increasing steps, then the next score."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["protocol"] == protocol:
            found.setdefault(row["score"], []).append(row["value"])
    return "; ".join(f"{UNITS[score][0]} {', '.join(values)}{UNITS[score][1]}" for score, values in found.items())


def recipes_table() -> str:
    """What the shortened runs of the official recipes came to."""
    lines = []
    for row in read_csv(RESULTS / "official_recipes.csv"):
        percent = [f"{name} {100 * row[name]:.1f} %" for name in ("mIoU", "aAcc", "delta1") if row.get(name) not in (None, "")]
        plain = [f"{name} {row[name]:.3f}" for name in ("abs_rel", "rmse") if row.get(name) not in (None, "")]
        first, last = row["window"], row["iterations"] - row["window"] + 1
        lines.append(
            {
                "recipe": f"`{row['recipe']}`",
                "crop": row["crop"],
                f"loss of iterations 1 to {first}": f"{row['loss_first']:.3f}",
                f"of {last} to {row['iterations']}": f"{row['loss_last']:.3f}",
                f"official protocol, {row['images']} held-out frames": ", ".join(percent + plain),
            }
        )
    return markdown_table(lines)


AUDITED = {"test": "maps not trained on", "train": "maps trained on"}


def audit_table() -> str:
    """Planted label errors found by ``noise2map audit`` and by other orders, see ``benchmarks/audit.py``."""
    rows = [
        {
            "frames": f"{row['frames']} of {AUDITED[row['split']]}",
            "order": row["method"],
            "any region": whole(row["reachable"]),
            **{f"first {cut}": whole(row[f"found_{cut}"]) for cut in (100, 200, 400)},
            "right of the first 100": f"{100 * row['precision_100']:.0f} %",
            "moved / erased / shifted": " / ".join(whole(row[f"{kind}_400"]) for kind in ("moved", "erased", "shifted")),
        }
        for row in read_csv(RESULTS / "audit.csv")
    ]
    return markdown_table(rows)


def seams_table() -> str:
    """Frames whole and in tiles, see ``benchmarks/seams.py``."""
    rows = [
        {
            "model": row["model"],
            "map": row["method"],
            "across / inside": f"{row['seam_ratio']:.2f}",
            "AbsRel": "" if row["abs_rel"] in ("", None) else f"{row['abs_rel']:.3f}",
            "mIoU %": "" if row["mIoU"] in ("", None) else f"{100 * row['mIoU']:.1f}",
        }
        for row in read_csv(RESULTS / "seams.csv")
    ]
    return markdown_table(rows)


def ambiguity_table() -> str:
    """Error and uncertainty from one end of each knob to the other, see ``benchmarks/ambiguity_dial.py``."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in read_csv(RESULTS / "ambiguity.csv"):
        groups.setdefault((row["model"], row["knob"]), []).append(row)
    rows = [
        {
            "model": model,
            "knob": f"{knob.replace('_', ' ')} {first['value']:g} to {last['value']:g}",
            "error": f"{first['error']:.3f} to {last['error']:.3f}",
            "uncertainty": f"{first['kind']} {first['uncertainty']:.3f} to {last['uncertainty']:.3f}",
            "follows": f"{first['follows']:.2f}",
        }
        for (model, knob), (first, *_, last) in groups.items()
    ]
    return markdown_table(rows)


def video_table() -> str:
    """Agreement of the maps of walks, see ``benchmarks/video.py``."""

    def with_interval(row: dict[str, Any], name: str) -> str:
        value = row.get(name)
        return "" if value in ("", None) else f"{value:.4f} {row[f'{name}_95']}"

    rows = [
        {
            "model": row["model"],
            "calls": row["calls"] or "",
            "frames": row["arm"],
            "disagreement": with_interval(row, "temporal"),
            "change": with_interval(row, "change"),
            "score": row["accuracy"] if row["calls"] else "",
        }
        for row in read_csv(RESULTS / "video.csv")
    ]
    return markdown_table(rows)


def nearest_table() -> str:
    """How near the shipped generator's images are to those it was trained on."""
    rows = [
        {
            "images": row["setting"],
            "number": row["images"],
            "median distance": f"{row['median']:.2f}",
            "nearest 5 %": f"{row['p05']:.2f}",
            "nearer than all but 1 % of unseen real ones, %": f"{100 * row['copies']:.1f}",
        }
        for row in read_csv(RESULTS / "nearest_training.csv")
    ]
    return markdown_table(rows)


def toy_parts_table() -> str:
    """How often steps draw what is true in six of ten squares, by scale and size."""
    lines: dict[tuple[float, int], dict[str, Any]] = {}
    for row in read_csv(RESULTS / "toy_parts.csv"):
        line = lines.setdefault((row["scale"], row["steps"]), {"map_scale": f"{row['scale']:g}", "steps": row["steps"]})
        line["single cells" if row["side"] == 1 else f"squares of {row['side']:g}²"] = f"{100 * row['share']:.0f}"
    return markdown_table(list(lines.values()))


def whole(number: float) -> str:
    """A count, or a mean of counts, without decimals."""
    return f"{number:.0f}"


def blocks() -> dict[tuple[Path, str], str]:
    """Every generated table: the page and the name of its block there -> the table."""
    page, recipes = ROOT / "docs" / "results.md", ROOT / "docs" / "recipes.md"
    found = {(recipes, "official commands"): command_table(), (ROOT / "README.md", "shipped models"): shipped_table()}
    for task in SCORES:
        names = [f"freedoom-bev-{sensors}-tiny" for sensors in BEV_SENSORS] if task == "bev" else [f"freedoom-{task}-tiny"]
        names = [name for name in names if name in available()]
        scores, uncertainty = score_table(task), uncertainty_table(task)
        found |= {(ZOO / name / "README.md", "scores"): scores + NOTE + uncertainty for name in names}
        found |= {(page, f"{task} scores"): scores, (page, f"{task} uncertainty"): uncertainty}
    found |= {
        (page, f"guidance {name}"): guidance_table(table) for name, table in {"scores": "guidance", "scales": "scales"}.items()
    }
    predictors, card = predictor_table(), ZOO / GENERATOR / "README.md"
    found |= {(page, "predictor scores"): predictors, (card, "predictor scores"): predictors}
    found[card, "guidance windows"] = geometry_guidance_table(WINDOWS[0], of="shipped")
    found |= {(page, "guidance priors"): guidance_table("priors"), (page, "guidance conventions"): convention_table()}
    found |= {(page, name.replace("_", " ")): geometry_guidance_table(name) for name in (BY_GEOMETRY[0], WINDOWS[0])}
    found[page, "nearest training"] = nearest_table()
    found[ROOT / "docs" / "training.md", "toy parts"] = toy_parts_table()
    found[page, "known populations"] = hidden_tables.population_table(RESULTS / "known_populations.csv")
    found[page, "hidden"] = hidden_tables.table([RESULTS / "evaluate_completion.csv", RESULTS / "decoders_completion.csv"])
    for task in visible_tables.ONE_MAP:
        decoders = RESULTS / f"decoders_{task}.csv"
        found[page, f"visible {task}"] = visible_tables.one_map_table(decoders)
        if task in visible_tables.DRAWN_MAPS:
            found[page, f"visible {task} drawn"] = visible_tables.drawn_maps_table(decoders)
        differences = RESULTS / f"differences_decoders_{task}.csv"
        found[page, f"visible {task} differences"] = visible_tables.differences_table(differences, task)
    above = [RESULTS / f"{name}.csv" for name in ("evaluate_bev_all_cells", "decoders_bev")]
    found[page, "hidden above"] = hidden_tables.table([path for path in above if path.is_file()], "bev")
    for name, source in {"guidance geometry differences": BY_GEOMETRY[1], "guidance window differences": WINDOWS[1]}.items():
        found[page, name] = guidance_differences_table(source)
    found[page, "guidance settings"] = guidance_settings_table()
    found[ROOT / "docs" / "findings.md", "broken layouts"] = broken_layouts_table()
    found |= {(page, "predictor blocks"): block_table(), (page, "application scores"): application_table()}
    found |= {(page, "noise levels"): noise_table(), (page, "dfid validation"): dfid_table()}
    found |= {(ROOT / "docs" / "speed.md", "speed"): speed_table(), (ROOT / "docs" / "bev.md", "pooling"): pooling_table()}
    beside = RESULTS / "bench_public_code.csv"
    found |= {
        (ROOT / "docs" / "speed.md", "public ratios"): ratio_table(beside),
        (ROOT / "docs" / "speed.md", "public seconds"): seconds_table(beside),
    }
    found |= {(ROOT / "docs" / "guidance.md", "guidance cost"): guidance_cost_table(shipped=False)}
    found |= {(ROOT / "docs" / "guidance.md", "guidance cost shipped"): guidance_cost_table(shipped=True)}
    found |= {(ROOT / "docs" / "guidance.md", "published shape"): published_shape_table()}
    for path in sorted(RESULTS.glob("ablation_*.csv")):
        table = markdown_table(summary(read_csv(path)), digits=3)
        found[ROOT / "docs" / "ablations.md", path.stem.replace("_", " ")] = table
    trust = ROOT / "docs" / "trust.md"
    found[trust, "shifts depth-laplace"] = shift_table("freedoom-depth-laplace-tiny", 180)
    found[trust, "shifts segmentation"] = shift_table("freedoom-segmentation-tiny", 180)
    found |= {(trust, "class calibration"): class_calibration_table(), (trust, "ambiguity"): ambiguity_table()}
    found |= {(ROOT / "docs" / "audit.md", "audit"): audit_table(), (ROOT / "docs" / "predict.md", "seams"): seams_table()}
    found[ROOT / "docs" / "predict.md", "video"] = video_table()
    return found | {(page, "official recipes"): recipes_table()}


def update_metadata(name: str) -> None:
    """Puts the scores of a shipped model into the metadata of its card, by which the hub ranks models."""
    rows = {
        table: [row for row in read_csv(table) if row["model"] == name and row.get("task") and row.get("split") != "val"]
        for table in sorted(RESULTS.glob("evaluate_*.csv"))
        if table.stem != "evaluate_bev_thresholds"  # of places drawn anew; README has those of evaluate_bev
    }
    if any(row.get("cells") != "all" for own in rows.values() for row in own):  # what is seen goes before all there is
        rows = {table: [row for row in own if row.get("cells") != "all"] for table, own in rows.items()}
    scores = []
    for table, own in rows.items():
        scores += scores_for_card(table, name) if own and not any(row.get("hide") for row in own) else []
    scores = list({(score.name, score.steps): score for score in scores}.values())
    card = ZOO / name / "README.md"
    if scores:
        index = model_index(name, task_of_folder(card.parent), scores)
        text = with_metadata(card.read_text(encoding="utf-8"), {"model-index": index}, replace=True)
        card.write_text(text, encoding="utf-8")


COLLECTORS: dict[str, Callable[[list[Path]], None]] = {
    "guidance": collect_guidance,
    "guidance-by-geometry": lambda folders: collect_guidance(folders, BY_GEOMETRY),
    "guidance-settings": lambda folders: collect_guidance(folders, SETTINGS),
    "guidance-windows": lambda folders: collect_guidance(folders, WINDOWS),
    "nearest": collect_nearest,
    "decoders": lambda folders: decoder_tables.add(folders, RESULTS),
    "predictor": collect_predictor,
    "trust": collect_trust,
    "application": collect_application,
}


def main() -> None:
    """Collects evaluations, or rewrites every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", nargs="+", metavar=("TASK", "FOLDER"))
    for name in COLLECTORS:
        parser.add_argument(f"--collect-{name}", type=Path, nargs="+", metavar="FOLDER")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect[0], [Path(folder) for folder in options.collect[1:]])
        return
    for name, collector in COLLECTORS.items():
        folders = getattr(options, f"collect_{name.replace('-', '_')}")
        if folders:
            collector(folders)
            return
    for (path, name), table in blocks().items():
        replace_block(path, name, table)
    for name in available():
        update_metadata(name)


if __name__ == "__main__":
    main()
