"""A check of a data set in words."""

from collections.abc import Mapping

import numpy as np

from noise2map.data.check import CheckReport

_SHOWN = 10
_QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
_BAR_WIDTH = 30


def check_lines(report: CheckReport, id2label: Mapping[int, str]) -> list[str]:
    """What was found, line by line: counts, files at fault, sizes, cameras, classes or depth, warnings."""
    lines = [f"{report.name}: {report.images:,} of {report.listed:,} samples read"]
    if report.without_depth:
        lines.append(f"{report.without_depth} more are listed without depth")
    lines += _listed("missing files", report.missing)
    lines += _listed("broken samples", report.broken)
    if not report.images:
        return lines + [f"warning: {text}" for text in report.warnings]
    sizes = [f"{width}x{height} ({count:,})" for (width, height), count in report.sizes.most_common(4)]
    more = f" and {len(report.sizes) - 4} other sizes" if len(report.sizes) > 4 else ""
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
    return [f"{len(found)} {what}:", *(f"  {text}" for text in found[:_SHOWN]), *more]


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
