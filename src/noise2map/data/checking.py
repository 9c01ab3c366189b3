"""A dataset looked through before it is trained on: counts, broken files, ranges, classes, the scale of depth."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from noise2map.data.opening import PUBLIC_DATASETS
from noise2map.data.paired import IGNORE
from noise2map.data.subsets import UNREADABLE, evenly_spaced
from noise2map.runs.progress import progress_bar
from noise2map.runs.words import counted

# Depth is counted in bins of equal ratio, so that quantiles of billions of pixels take no memory: to 0.5 percent.
_EDGES_M = np.geomspace(1e-3, 1e3, 2801)

# What a file may hold instead of what was assumed: the factor by which the depth read is then wrong.
_UNITS_PER_METRE = {1: "metres", 1000: "millimetres", 256: "1/256 m", 100: "centimetres", 5000: "1/5000 m", 10000: "1/10000 m"}

_FEW_KNOWN, _FEW_KNOWN_IMAGES = 0.02, 0.5


@dataclass
class CheckReport:
    """Findings of a check.

    Attributes:
        name: The dataset.
        images: Samples that could be read.
        listed: Samples that there should be.
        released: How many the released split has, if that is known.
        without_depth: Lines of the list that say that there is no depth; they are no samples.
        missing: Files that are not there, or have no partner.
        broken: What is wrong with the samples that could not be read.
        sizes: Number of samples by width and height.
        brightness: Least, mean and largest of the images' mean values, 0 to 255.
        class_pixels: Pixels of each class, then of "ignore", ``(K + 1,)``; empty for depth.
        class_images: In how many samples each class is, ``(K,)``.
        depth_pixels: Pixels by bin of depth.
        known_share: Share of pixels whose depth is known.
        sparse_images: Samples with hardly any known depth.
        cameras: Samples with intrinsics.
        focal_px: Least and largest focal length.
        warnings: What looks wrong.
    """

    name: str
    listed: int
    released: int | None = None
    images: int = 0
    without_depth: int = 0
    missing: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    brightness: tuple[float, float, float] = (0.0, 0.0, 0.0)
    class_pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    class_images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    depth_pixels: np.ndarray = field(default_factory=lambda: np.zeros(len(_EDGES_M) - 1, np.int64))
    known_share: float = 0.0
    sparse_images: int = 0
    cameras: int = 0
    focal_px: tuple[float, float] = (0.0, 0.0)
    warnings: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True if every file is there and can be read."""
        return not self.missing and not self.broken

    def depth_quantiles(self, *shares: float) -> list[float]:
        """Depth in metres below which these shares of the known pixels lie, to 0.5 percent; NaN without depth."""
        total = np.cumsum(self.depth_pixels)
        if not total[-1]:
            return [float("nan")] * len(shares)
        places = np.searchsorted(total, np.maximum(np.array(shares) * total[-1], 1))
        return [float(np.sqrt(_EDGES_M[place] * _EDGES_M[place + 1])) for place in places]


def check_dataset(
    dataset: Any,
    name: str,
    limit: int = 0,
    skip_broken: bool = True,
    depth_median_m: tuple[float, float] | None = None,
    units_per_metre: float | None = None,
    released: int | None = None,
    progress: bool = False,
) -> CheckReport:
    """Read samples and report.

    Args:
        dataset: A dataset of raw samples; its ``missing`` files and ``without_depth`` are reported if it has them.
        name: What to call it.
        limit: Read this many samples, spread evenly; 0 for all.
        skip_broken: Collect what is broken and go on; else the first broken sample is an error.
        depth_median_m: Where the median depth should lie, metres.
        units_per_metre: What the depth files are taken to hold, to say what they may hold instead.
        released: How many samples the released split has.
        progress: Show a bar on a terminal.

    Raises:
        OSError: If a sample cannot be read and ``skip_broken`` is off.
        ValueError: As above, or if ``limit`` is negative.
    """
    if limit < 0:
        raise ValueError(f"limit is {limit}; expected a number of samples, 0 for all")
    report = CheckReport(name, len(dataset), released, without_depth=getattr(dataset, "without_depth", 0))
    report.missing = [str(path) for path in getattr(dataset, "missing", [])]
    id2label = getattr(dataset, "id2label", {})
    report.class_pixels = np.zeros(len(id2label) + bool(id2label), np.int64)
    report.class_images = np.zeros(len(id2label), np.int64)
    report.warnings = list(getattr(dataset, "warnings", []))
    tally = _Tally(report)
    indices = evenly_spaced(len(dataset), limit or len(dataset))
    for index in progress_bar(indices, unit="sample", shown=progress):
        try:
            tally.add(dataset[index])
        except UNREADABLE as error:
            if not skip_broken:
                raise
            report.broken.append(str(error))
    tally.finish()
    _warn(report, id2label, depth_median_m, units_per_metre, len(indices) < len(dataset))
    return report


class _Tally:
    """Sums over samples that end up in a report."""

    def __init__(self, report: CheckReport) -> None:
        self.report = report
        self.means: list[float] = []
        self.focal: list[float] = []
        self.known = self.pixels = 0

    def add(self, sample: dict[str, Any]) -> None:
        report = self.report
        report.sizes[sample["image"].size] += 1
        self.means.append(float(np.asarray(sample["image"]).mean()))
        if "labels" in sample:
            self._add_labels(sample["labels"])
        if "depth_m" in sample:
            self._add_depth(sample["depth_m"], sample["valid"])
        if "intrinsics" in sample:
            report.cameras += 1
            self.focal.append(float(sample["intrinsics"][0]))
        report.images += 1

    def _add_labels(self, labels: np.ndarray) -> None:
        counts = np.bincount(labels.reshape(-1), minlength=IGNORE + 1)
        classes = len(self.report.class_images)
        self.report.class_pixels[:-1] += counts[:classes]
        self.report.class_pixels[-1] += counts[IGNORE]
        self.report.class_images += counts[:classes] > 0

    def _add_depth(self, depth_m: np.ndarray, valid: np.ndarray) -> None:
        known = depth_m[valid]
        bins = np.clip(np.searchsorted(_EDGES_M, known, side="right") - 1, 0, len(_EDGES_M) - 2)
        self.report.depth_pixels += np.bincount(bins, minlength=len(_EDGES_M) - 1)
        self.report.sparse_images += known.size < _FEW_KNOWN * depth_m.size
        self.known += known.size
        self.pixels += depth_m.size

    def finish(self) -> None:
        if self.means:
            self.report.brightness = (min(self.means), float(np.mean(self.means)), max(self.means))
        if self.focal:
            self.report.focal_px = (min(self.focal), max(self.focal))
        if self.pixels:
            self.report.known_share = self.known / self.pixels


def _warn(
    report: CheckReport,
    id2label: dict[int, str],
    depth_median_m: tuple[float, float] | None,
    units_per_metre: float | None,
    sampled: bool,
) -> None:
    """Write down what looks wrong although every file can be read."""
    if not report.images:
        report.warnings.append("no sample could be read")
        return
    if report.released is not None and report.listed != report.released:
        report.warnings.append(f"{report.listed} samples, the released split has {report.released}")
    if report.brightness[2] - report.brightness[0] < 1 and report.images > 1:
        report.warnings.append(f"all images have the same mean value ({report.brightness[1]:.0f} of 255)")
    if id2label:
        if not report.class_pixels[:-1].any():
            report.warnings.append("every pixel is ignored: the labels of this split are empty")
        unseen = [id2label[index] for index in np.flatnonzero(report.class_images == 0).tolist()]
        if unseen and not sampled and report.class_pixels[:-1].any():
            shown = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
            report.warnings.append(f"{len(unseen)} of {len(id2label)} classes are nowhere: {shown}")
    elif report.depth_pixels.any():
        scale = scale_warning(report, depth_median_m, units_per_metre)
        report.warnings += [] if scale is None else [scale]
        if report.sparse_images > _FEW_KNOWN_IMAGES * report.images:
            report.warnings.append(f"{report.sparse_images} of {report.images} samples have depth for under 2 % of their pixels")
    elif report.sparse_images:
        report.warnings.append("no pixel has a depth: every value is 0")


def scale_warning(report: CheckReport, bounds_m: tuple[float, float] | None, units_per_metre: float | None) -> str | None:
    """Warning about the scale of depth, None if it is plausible.

    Args:
        report: What was read.
        bounds_m: Where the median depth should lie, metres.
        units_per_metre: What the files are taken to hold.
    """
    median = report.depth_quantiles(0.5)[0]
    if bounds_m is None or not report.depth_pixels.any() or bounds_m[0] <= median <= bounds_m[1]:
        return None
    text = f"the median depth is {median:.3g} m, expected {bounds_m[0]:g} to {bounds_m[1]:g} m: the scale is likely wrong"
    if units_per_metre is not None:
        assumed = _UNITS_PER_METRE.get(round(units_per_metre), f"1/{units_per_metre:g} m")
        others = [
            f"{name} ({median * units_per_metre / other:.3g} m)"
            for other, name in _UNITS_PER_METRE.items()
            if round(units_per_metre) != other and bounds_m[0] <= median * units_per_metre / other <= bounds_m[1]
        ]
        if others:
            text += f"; the files may hold {' or '.join(others)} instead of {assumed}"
    return text


def check_classes(dataset: Any, id2label: Mapping[int, str], model_name: str) -> str | None:
    """Compare the classes of a dataset with a model's.

    Returns:
        A warning where the numbers agree but names differ, else None.

    Raises:
        ValueError: If the numbers of classes differ.
    """
    known = {int(index): str(label) for index, label in id2label.items()}
    found = {int(index): str(label) for index, label in dataset.id2label.items()}
    if len(known) != len(found):
        raise ValueError(
            f"model {model_name!r} knows {len(known)} classes ({_some(known)}), the data has {len(found)} ({_some(found)})"
        )
    different = [index for index in found if found[index] != known.get(index)]
    if different:
        first = different[0]
        return f"class {first} is {known.get(first)!r} in the model and {found[first]!r} in the data ({len(different)} differ)"
    return None


def _some(names: Mapping[int, str]) -> str:
    listed = [names[index] for index in sorted(names)]
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")


_SHOWN = 10

_QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)

_BAR_WIDTH = 30


def check_lines(report: CheckReport, id2label: Mapping[int, str]) -> list[str]:
    """Findings, line by line: counts, files at fault, sizes, cameras, classes or depth, warnings."""
    lines = [f"{report.name}: {report.images:,} of {counted(report.listed, 'sample')} read"]
    if report.without_depth:
        lines.append(f"{report.without_depth} more {'is' if report.without_depth == 1 else 'are'} listed without depth")
    lines += _listed("missing file", report.missing)
    lines += _listed("broken sample", report.broken)
    if not report.images:
        return lines + [f"warning: {text}" for text in report.warnings]
    sizes = [f"{width}x{height} ({count:,})" for (width, height), count in report.sizes.most_common(4)]
    more = f" and {counted(len(report.sizes) - 4, 'other size')}" if len(report.sizes) > 4 else ""
    lines.append(f"sizes: {', '.join(sizes)}{more}")
    low, mean, high = report.brightness
    lines.append(f"images: mean value {mean:.0f} of 255, from {low:.0f} (darkest) to {high:.0f} (lightest)")
    if report.cameras:
        near, far = report.focal_px
        focal = f"{near:.1f} px" if near == far else f"{near:.1f} to {far:.1f} px"
        lines.append(f"cameras: {report.cameras:,} of {report.images:,} samples, focal length {focal}")
    if id2label:
        lines += _class_lines(report, id2label)
    elif report.depth_pixels.any():
        names = ("least", "1 %", "25 %", "median", "75 %", "99 %", "most")
        values = [f"{name} {value:.3g}" for name, value in zip(names, report.depth_quantiles(*_QUANTILES))]
        lines.append(f"depth in metres: {', '.join(values)}; known for {report.known_share:.1%} of the pixels")
    return lines + [f"warning: {text}" for text in report.warnings]


def _listed(what: str, found: list[str]) -> list[str]:
    if not found:
        return []
    more = [f"  and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return [f"{counted(len(found), what)}:", *(f"  {text}" for text in found[:_SHOWN]), *more]


def _class_lines(report: CheckReport, id2label: Mapping[int, str]) -> list[str]:
    """A histogram of the classes, most frequent first."""
    shares = report.class_pixels / max(int(report.class_pixels.sum()), 1)
    order = np.argsort(-shares[:-1], kind="stable").tolist()
    width = max(len(name) for name in id2label.values())
    lines = [f"classes: share of pixels, samples (of {report.images:,})"]
    for index in order:
        if report.class_images[index]:
            bar = "#" * max(round(shares[index] * _BAR_WIDTH / max(shares.max(), 1e-9)), 1)
            count = int(report.class_images[index])
            lines.append(f"  {index:3d} {id2label[index]:{width}} {shares[index]:7.2%} {count:7,}  {bar}")
    lines.append(f"  255 {'ignored':{width}} {shares[-1]:7.2%}")
    return lines


_LOOKED_AT = 8


def warn_of_scale(dataset: Any, name: str) -> str | None:
    """Reads a few samples of a public depth dataset; says what is odd about its scale, or nothing.

    Args:
        dataset: The opened dataset.
        name: A key of ``PUBLIC_DATASETS``; of any other nothing is known.
    """
    kind = PUBLIC_DATASETS.get(name)
    if kind is None or kind.depth_median_m is None or not len(dataset):
        return None
    report = check_dataset(dataset, kind.title, limit=_LOOKED_AT)
    text = scale_warning(report, kind.depth_median_m, kind.units_per_metre)
    return None if text is None else f"{kind.title}: {text}"
