"""Answers as parts of the page: HTML that `report.html` and these few functions draw; all text in it is escaped."""

from html import escape
from typing import Any

import numpy as np

from noise2map.app.files import cloud_points, painted_map, painted_uncertainty
from noise2map.app.maps import MapResult
from noise2map.app.pixel import PixelReport, share_text
from noise2map.app.places import PlaceMap
from noise2map.report.bev_panels import layer_legend
from noise2map.report.html import Cloud, Page, color_bar, image_uri
from noise2map.report.palettes import colorize_normals, legend_entries
from noise2map.report.panels import Cell, depth_cell, uncertainty_cell

MOST_POINTS = 60_000


def map_cards(result: MapResult) -> str:
    """The denoising step by step, and for depth the point cloud."""
    page = Page("")
    if len(result.step_maps) > 1:
        frames = []
        for index, (t, noisy, painted) in enumerate(zip(result.times, result.noisy, result.painted_steps())):
            note = f"{index + 1} of {len(result.times)}, t = {t:.2f}"
            frames.append([Cell("what goes in", noisy, note=note), Cell("what the model reads in it", painted)])
        page.player(frames, "The denoising, step by step", legend(result, steps=True))
    if result.predictor.in_metres:
        points, focal = cloud_points(result)
        stride = max(1, int(np.ceil(np.sqrt(points.shape[0] * points.shape[1] / MOST_POINTS))))
        colors = {"image": result.prediction.image, "map": painted_map(result), "uncertainty": painted_uncertainty(result)}
        thin = {name: one[::stride, ::stride] for name, one in colors.items() if one is not None}
        points = points[::stride, ::stride]
        if np.isfinite(points).all(-1).any():
            text = f"drag to turn, wheel to come nearer; field of view {result.request.fov_deg:g}°"
            page.cloud(Cloud.of_image(points, thin, focal / stride), "In three dimensions", text)
    return page.body()


def legend(result: MapResult, steps: bool = False) -> list[Any]:
    """What colors mean, as pairs of color and name.

    The classes that are in the map, or in what the model read at its steps; directions of normals; none for depth, which has a bar.
    """
    if not result.predictor.has_classes:
        return [] if result.predictor.in_metres else directions()
    shown = list(result.step_maps.argmax(1)) if steps else [result.prediction.map]
    return legend_entries(shown, result.predictor.id2label, result.predictor.palette)


def bars(result: MapResult) -> dict[str, str]:
    """What colors of map and uncertainty stand for where they are no classes, as HTML: color bars, or a ball of directions."""
    found, unsure = {}, result.prediction.uncertainty
    if result.predictor.in_metres:
        found["map"] = color_bar(depth_cell(result.prediction.map).bar)
    elif not result.predictor.has_classes:
        found["map"] = _ball()
    if unsure is not None:
        found["uncertainty"] = color_bar(uncertainty_cell(unsure).bar)
    return found


def layers(result: MapResult) -> dict[str, str]:
    """What lies over each other to be blended: image, map and uncertainty as addresses that hold the images themselves."""
    images = {"image": result.prediction.image, "map": painted_map(result), "uncertainty": painted_uncertainty(result)}
    return {name: image_uri(one) for name, one in images.items() if one is not None}


def place_layers(place: PlaceMap) -> dict[str, Any]:
    """Truth, map and uncertainty of a place to be blended and clicked, with names and colors of its layers."""
    layers = place.layers()
    height, width = layers["map"].shape[:2]
    return {
        "first": "truth",
        "layers": {name: image_uri(one) for name, one in layers.items()},
        "bars": {"uncertainty": color_bar(uncertainty_cell(place.prediction.largest_uncertainty, limit=place.limit).bar)},
        "legend": [[list(color), name] for color, name in layer_legend(place.names, place.palette)],
        "uncertainty": place.uncertainty_title,
        "size": [width, height],
    }


def pixel_card(report: PixelReport) -> str:
    """What a pixel says, as bars or as a histogram."""
    parts = [f"<h3>{report.what} {report.x}, {report.y}: {escape(report.headline)}</h3>"]
    for name, share, color in report.bars:
        width = f"width:{max(share * 100, 0.3):.1f}%;background:rgb{color}"
        said = escape(share_text(share))
        parts.append(f'<div class="share"><span>{escape(name)}</span><div><i style="{width}"></i></div><b>{said}</b></div>')
    if report.edges:
        parts.append(_histogram(report))
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts)
    return "".join(parts) + (f"<dl>{rows}</dl>" if rows else "")


def directions() -> list[list[Any]]:
    """Colors of maps of normals and what faces so, as pairs of color and name."""
    rows = [("up", (0, -1, 0)), ("down", (0, 1, 0)), ("left", (-1, 0, 0)), ("right", (1, 0, 0)), ("towards you", (0, 0, -1))]
    colors = colorize_normals(np.array([[axes for _, axes in rows]], np.float32))[0]
    return [[color.tolist(), f"faces {name}"] for color, (name, _) in zip(colors, rows)]


def _ball(side: int = 112) -> str:
    """A ball, each place of it in the color of a surface that faces as it does."""
    middles = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(middles, middles)
    rim = np.maximum(np.hypot(x, y), 1)  # beyond it, where the page cuts, the colors of the rim go on
    x, y = x / rim, y / rim
    normals = np.stack([x, y, -np.sqrt(np.maximum(1 - x**2 - y**2, 0))], -1)
    image = image_uri(colorize_normals(normals))
    text = "A surface has the color of the place on this ball that faces the same way."
    return f'<div class="ball"><img alt="colors of directions on a ball" src="{image}"><span>{text}</span></div>'


_COLORS = ("#2f6fd0", "#e08a1e", "#3c9d5b")


def _histogram(report: PixelReport) -> str:
    """Shares of the bins side by side, as SVG; the bins are equally wide on the page."""
    width, height, bins = 480, 130, len(report.edges) - 1
    top = max((max(values) for values in report.series.values()), default=1.0) or 1.0
    thin = width / bins / max(len(report.series), 1)
    bars, keys = [], []
    for place, (name, values) in enumerate(report.series.items()):
        color = _COLORS[place % len(_COLORS)]
        keys.append(f'<li><i style="background:{color}"></i>{escape(name)}</li>')
        for index, value in enumerate(values):
            tall = height * value / top
            x = index * width / bins + place * thin
            bars.append(f'<rect x="{x:.1f}" y="{height - tall:.1f}" width="{thin * 0.92:.1f}" height="{tall:.1f}" fill="{color}"/>')
    for name, value in report.marks.items():
        x = width * float(np.interp(value, report.edges, np.linspace(0, 1, bins + 1)))
        bars.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"><title>{escape(name)}</title></line>')
        keys.append(f'<li><i class="mark"></i>{escape(name)}</li>')
    ends = [report.edges[0], report.edges[bins // 2], report.edges[-1]]
    unit = escape(report.unit if report.unit == "°" else f" {report.unit}")
    ticks = "".join(f"<span>{value:.3g}{unit}</span>" for value in ends)
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="histogram">{"".join(bars)}</svg>'
        f'<div class="ends">{ticks}</div><ul class="legend">{"".join(keys)}</ul>'
    )
