"""Do the laws of rooms tell real geometry from broken one, and what is left of that where depth is estimated?

Frames of Freedoom's test maps at 64 px are broken in known ways. Each law is scored on the true depth (the depth map is broken) and
on depth that a model reads from the image (the image is broken, then read). The area under the ROC curve says how often a real
image scores better than a broken one; its interval is over maps, all frames of a map together. Means of the real frames under
estimated depth are the ceiling that a generator can be held to.

    python benchmarks/geometry_validation.py --root data/freedoom-rooms/test --out results/geometry_validation.csv

Estimated depth is kept in --cache by content; a second run only scores. A quarter of an hour on one core.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from noise2map.data import FreedoomDataset
from noise2map.data.center_crop import CenterCrops
from noise2map.inference.depth_models import DepthModel, load_depth_model
from noise2map.metrics import EYE_HEIGHT_M, ROOM_SCORES, room_scores
from noise2map.report.plots import save_figure
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import content_checksum
from noise2map.runs.provenance import provenance

SIDE = 64
SCALE = 1.3
TILT_DEG = 10.0
# Score -> sign with which larger is better; the height is judged by its distance from the eye's.
BETTER = dict(zip(ROOM_SCORES, (0, 1, 1, -1, -1, 1, 1)))
ORDERS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


# ---- what is broken ------------------------------------------------------------------------------------------------------------


def thirds(maps: Tensor, orders: Tensor) -> Tensor:
    """Maps `(B, C, H, W)` whose horizontal bands stand in other orders `(B,)`."""
    ends = [round(SIDE * third / 3) for third in range(4)]
    rows = [[torch.arange(ends[band], ends[band + 1]) for band in ORDERS[order]] for order in orders.tolist()]
    return torch.stack([one[:, torch.cat(bands)] for one, bands in zip(maps, rows)])


def look_up(maps: Tensor, x: Tensor, y: Tensor, is_depth: bool, padding: str) -> Tensor:
    """Maps `(B, C, H, W)` at pixels `(B, H, W)`; depth takes the nearest pixel."""
    grid = torch.stack([2 * x / SIDE - 1, 2 * y / SIDE - 1], dim=-1).float()
    mode = "nearest" if is_depth else "bilinear"
    return functional.grid_sample(maps, grid, mode=mode, padding_mode=padding, align_corners=False)


def broken(maps: Tensor, camera: Tensor, is_depth: bool, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Names of changes and the changed maps `(B, C, H, W)`: images in 0..255 or depth in m, 0 unknown."""
    generator, count, middle = torch.Generator().manual_seed(seed), len(maps), SIDE // 2
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    field = torch.randn(count, 2, 5, 5, generator=generator)
    shifts = torch.randint(SIDE // 4, 3 * SIDE // 4 + 1, (count,), generator=generator)
    orders = [torch.randint(len(ORDERS), (count,), generator=generator) for _ in range(2)]
    y, x = torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 2, indexing="ij")
    yield "real", maps
    yield "halves swapped", torch.cat([maps[:, :, middle:], maps[:, :, :middle]], dim=2)
    yield "thirds shuffled", thirds(maps, orders[0])
    yield "columns shuffled", thirds(maps.mT, orders[1]).mT
    yield "half of another", torch.cat([maps[..., :middle], maps.roll(count // 2, 0)[..., middle:]], dim=3)
    yield "rolled", torch.stack([one.roll(shift, 1) for one, shift in zip(maps, shifts.tolist())])
    # A camera that is rolled about its axis: depth along it stays, rays turn.
    fx, fy, cx, cy = camera.tolist()
    angle = math.radians(TILT_DEG) * sign[:, None, None]
    across, down = (x - cx) / fx, (y - cy) / fy
    turned = (angle.cos() * across - angle.sin() * down) * fx + cx, (angle.sin() * across + angle.cos() * down) * fy + cy
    yield "tilted", look_up(maps, *turned, is_depth, "zeros" if is_depth else "border")
    moved = functional.interpolate(field, size=(SIDE, SIDE), mode="bicubic", align_corners=True) * 3  # px
    yield "warped", look_up(maps, x + moved[:, 0], y + moved[:, 1], is_depth, "border")
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(seed + 1))
    yield "noise", maps * (1 + 0.05 * noise) if is_depth else (maps + 25 * noise).clamp(0, 255).round()


# ---- what is found -------------------------------------------------------------------------------------------------------------


def estimated(images: Tensor, model: DepthModel, cache: Path) -> Tensor:
    """Depth `(B, H, W)` of images `(B, 3, H, W)` uint8, kept by content."""
    path = cache / f"{content_checksum([images.numpy().tobytes(), model.name.encode()])}.safetensors"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        save_file({"depth": torch.cat([model(part) for part in images.split(64)])}, path)
    return load_file(path)["depth"]


def merit(scores: dict[str, Tensor], name: str) -> Tensor:
    """A score `(B,)` such that more is better."""
    values = scores[name]
    return BETTER[name] * values if BETTER[name] else -(values / EYE_HEIGHT_M).log().abs()


def auroc(real: Tensor, other: Tensor, maps: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Share of pairs in which the real image is better, ties half, and its interval over maps; NaN where nothing is defined."""
    names = np.unique(maps)
    wins, pairs = np.zeros((2, len(names), len(names)))
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            one, two = real[torch.from_numpy(maps == a)], other[torch.from_numpy(maps == b)]
            one, two = one[~one.isnan(), None], two[None, ~two.isnan()]
            wins[i, j] = (one > two).sum().item() + (one == two).sum().item() / 2
            pairs[i, j] = len(one) * two.shape[1]
    if not pairs.sum():
        return math.nan, math.nan, math.nan
    random, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))
        if times @ pairs @ times:
            drawn.append(times @ wins @ times / (times @ pairs @ times))
    return wins.sum() / pairs.sum(), *np.quantile(drawn, [0.025, 0.975])


def score_rows(depths: dict[str, Tensor], camera: Tensor, far: float | None, maps: np.ndarray, options) -> list[dict]:
    """A row for each change and score."""
    found = {name: room_scores(depth, camera, far) for name, depth in depths.items()}
    found["scaled"] = room_scores(SCALE * depths["real"], camera, None if far is None else SCALE * far)
    rows = []
    for change, scores in found.items():
        for name, values in scores.items():
            row = {
                "change": change,
                "score": name,
                "mean": values.nanmean().item(),
                "defined": 1 - values.isnan().double().mean().item(),
            }
            if change != "real":
                ends = auroc(merit(found["real"], name), merit(scores, name), maps, options.resamples, options.seed)
                row |= dict(zip(("auroc", "auroc_low", "auroc_high"), map(float, ends)))
            rows.append(row)
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """A table in colors for each source of depth: changes down, scores across, numbers in the cells."""
    import matplotlib.pyplot as plt

    sources = list(dict.fromkeys(row["depth"] for row in rows))
    changes = [change for change in dict.fromkeys(row["change"] for row in rows) if change != "real"]
    figure, axes = plt.subplots(1, len(sources), figsize=(5.2 * len(sources), 4.4), sharey=True, layout="constrained")
    for axis, source in zip(np.atleast_1d(axes), sources):
        cells = {(row["change"], row["score"]): row for row in rows if row["depth"] == source}
        values = np.array([[cells[change, name]["auroc"] for name in ROOM_SCORES] for change in changes])
        image = axis.imshow(values, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            told = "–" if math.isnan(value) else f"{value:.2f}"
            axis.text(j, i, told, ha="center", va="center", fontsize=8, color="white" if abs(value - 0.5) > 0.35 else "black")
        axis.set_xticks(range(len(ROOM_SCORES)), [name.replace("_", " ") for name in ROOM_SCORES], rotation=40, ha="right")
        axis.set_yticks(range(len(changes)), changes)
        axis.set_title("true depth" if source == "true" else f"depth by {source.split('@')[0]}", fontsize=10)
    figure.colorbar(image, ax=axes, label="real better than broken (AUROC)")
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/freedoom-rooms/test"))
    parser.add_argument("--every", type=int, default=3, help="take every so manieth frame")
    parser.add_argument("--estimators", default="freedoom-depth-laplace-tiny", help="depth models, separated by commas")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("out/geometry_validation"))
    parser.add_argument("--out", type=Path, default=Path("results/geometry_validation.csv"))
    options = parser.parse_args()
    dataset = FreedoomDataset(options.root, "depth")
    chosen = list(range(0, len(dataset), options.every))
    frames = [
        CenterCrops(torch.utils.data.Subset(dataset, chosen), SIDE, ("image", "depth"))[index] for index in range(len(chosen))
    ]
    maps, camera = np.array([dataset.records[index]["map"] for index in chosen]), torch.from_numpy(frames[0]["intrinsics"])
    depth = torch.from_numpy(np.stack([frame["depth_m"] for frame in frames]))
    images = torch.from_numpy(np.stack([np.asarray(frame["image"]) for frame in frames])).permute(0, 3, 1, 2)
    sources = {"true": ({name: one[:, 0] for name, one in broken(depth[:, None], camera, True, options.seed)}, None)}
    for spec in options.estimators.split(","):
        model = load_depth_model(spec, "cpu")
        seen = broken(images.float(), camera, False, options.seed)
        read = {name: estimated(one.to(torch.uint8).contiguous(), model, options.cache) for name, one in seen}
        sources[model.name] = (read, 0.99 * model.depth_range[1])
    facts = {"frames": len(chosen), "maps": len(set(maps)), "resamples": options.resamples}
    facts |= {**provenance(torch.device("cpu"), torch.float32, options.seed), "command": f"python {' '.join(sys.argv)}"}
    rows = []
    for source, (depths, far) in sources.items():
        rows += [{"depth": source, **row, **facts} for row in score_rows(depths, camera, far, maps, options)]
    write_csv(options.out, rows)
    draw(rows, options.out.with_suffix(".png"))
    print(text_table(rows, ["depth", "change", "score", "mean", "defined", "auroc", "auroc_low", "auroc_high"], digits=3))


if __name__ == "__main__":
    main()
