"""One self-contained HTML page: images, players, point clouds and tables inside the file, no request to anywhere."""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from noise2map.report.canvas import ColorBar, ticks
from noise2map.report.panels import Cell
from noise2map.report.plots import figure_bytes
from noise2map.report.point_view import first_view, point_growth
from noise2map.report.tables import Row, column_names, format_value
from noise2map.runs.files import encode_image, write_bytes


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a ``data:`` address of the given media type, e.g. ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def image_uri(image: np.ndarray) -> str:
    """``(H, W, 3)`` uint8 as a ``data:`` address; lossless WebP, a third smaller than PNG."""
    return data_uri(encode_image(Image.fromarray(image), ".webp", lossless=True, method=2), "image/webp")


def _bytes_text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


Legend = Sequence[tuple[tuple[int, int, int], str]]


@dataclass(frozen=True)
class GalleryItem:
    """One set of images of a gallery.

    Attributes:
        thumbnail: ``(H, W, 3)`` uint8, shown small.
        heading: Above the images.
        rows: The images.
        legend: Below them.
    """

    thumbnail: np.ndarray
    heading: str
    rows: Sequence[Sequence[Cell | None]]
    legend: Legend = ()


@dataclass(frozen=True)
class Cloud:
    """A point cloud and its colorings.

    Attributes:
        points_m: ``(N, 3)`` metres in camera axes (x right, y down, z forward); rows that are not finite are left out.
        colors: Name of a coloring to ``(N, 3)`` uint8.
        focal_px: Focal length of the image that the points come from: each is drawn as large as its pixel.
        growth: ``(N,)``, how many times as large, from 1 to 5, see `point_growth`; None for once.
    """

    points_m: np.ndarray
    colors: Mapping[str, np.ndarray]
    focal_px: float = 100.0
    growth: np.ndarray | None = None

    @classmethod
    def of_image(cls, points_m: np.ndarray, colors: Mapping[str, np.ndarray], focal_px: float) -> "Cloud":
        """The points of an image's pixels, drawn without gaps on slanted surfaces; all arrays are ``(H, W, 3)``."""
        flat = {name: one.reshape(-1, 3) for name, one in colors.items()}
        return cls(points_m.reshape(-1, 3), flat, focal_px, point_growth(points_m, focal_px).reshape(-1))


class Page:
    """Collects parts and writes them as one file.

    Text given to the methods is escaped; only :meth:`raw` takes HTML.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        """Start a page.

        Args:
            title: The title, in the window and on top.
            lead: A sentence below it.
        """
        self.title, self.lead = title, lead
        self._sections: list[str] = []
        self._parts: list[str] = []
        self._footer = ""

    def section(self, title: str, text: str = "") -> None:
        """Begin a section; it is listed under the title of the page."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="s{len(self._sections)}">{escape(title)}</h2>')
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """Add a paragraph; what stands between backquotes is set as code."""
        parts = escape(text).split("`")
        marked = "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
        self._parts.append(f"<p>{marked}</p>")

    def code(self, text: str) -> None:
        """Add lines of a terminal or a program."""
        self._parts.append(f"<pre><code>{escape(text)}</code></pre>")

    def raw(self, html: str) -> None:
        """Add HTML as it is."""
        self._parts.append(html)

    def footer(self, text: str) -> None:
        """Set the line at the end of the page."""
        self._footer = text

    def cells(self, rows: Sequence[Sequence[Cell | None]], heading: str = "", legend: Legend = ()) -> None:
        """Add a card with images in rows and columns; None leaves a place empty."""
        self._card(_grid(rows) + _legend(legend), heading)

    def gallery(self, items: Sequence[GalleryItem]) -> None:
        """Add a card with one of several sets of images, chosen by a click on its thumbnail; without scripts, all."""
        thumbs, sheets = [], []
        for index, item in enumerate(items):
            uri = image_uri(item.thumbnail)
            pressed = "false" if index else "true"
            thumbs.append(
                f'<button type="button" aria-pressed="{pressed}" title="{escape(item.heading)}"><img class="pixels" '
                f'alt="{escape(item.heading)}" src="{uri}"></button>'
            )
            sheets.append(f"<div data-sheet><h3>{escape(item.heading)}</h3>{_grid(item.rows)}{_legend(item.legend)}</div>")
        self._card(f'<div class="thumbs">{"".join(thumbs)}</div>{"".join(sheets)}', "", "data-gallery")

    def player(self, frames: Sequence[Sequence[Cell]], heading: str = "", legend: Legend = ()) -> None:
        """Add a card that shows the frames one after another, with a slider; each frame is a row of cells."""
        if not frames or len({len(frame) for frame in frames}) != 1:
            raise ValueError("a player needs frames with the same number of cells")
        figures = []
        for column in zip(*frames):
            uris = [image_uri(cell.image) for cell in column]
            still = len(set(uris)) == 1  # what does not change is stored once
            attributes = "" if still else f" data-frames='{json.dumps(uris)}'"
            notes = escape(json.dumps([cell.note for cell in column]), quote=True)
            figures.append(
                f"<figure><figcaption><b>{escape(column[0].title)}</b>"
                f'<span data-notes="{notes}">{escape(column[-1].note)}</span></figcaption>'
                f'<img class="pixels" alt="{escape(column[0].title)}" src="{uris[-1]}"{attributes}>'
                f"{color_bar(column[-1].bar)}</figure>"
            )
        controls = (
            '<div class="controls"><button type="button">▶ play</button>'
            f'<input type="range" min="0" max="{len(frames) - 1}" value="{len(frames) - 1}" aria-label="step"></div>'
        )
        body = f'<div class="scroll"><div class="grid" style="{_columns(len(figures))}">{"".join(figures)}</div></div>{controls}'
        self._card(body + _legend(legend), heading, "data-player")

    def cloud(self, cloud: Cloud, heading: str = "", text: str = "") -> None:
        """Add a card with a point cloud to turn and come nearer to, and a button per coloring."""
        finite = np.isfinite(cloud.points_m).all(axis=1)
        points = np.asarray(cloud.points_m, dtype=np.float64)[finite]
        if len(points) == 0:
            raise ValueError("a point cloud needs at least one finite point")
        center = np.percentile(points, [5, 95], axis=0).mean(axis=0)
        points = points - center
        radius = max(float(np.percentile(np.linalg.norm(points, axis=1), 90)), 1e-6)
        # Whole numbers of 1/2000 of the radius, little-endian: +-16 radii fit in 16 bits; farther points stop there.
        packed = np.clip(np.round(points / radius * 2000), -32767, 32767).astype("<i2")
        view = first_view(packed / 2000)
        content = {
            "points": _bytes_text(packed),
            "unit": 1 / 2000,
            "eye": float(center[2] / radius),  # what to add to z to get the distance from the eye that took the image
            "focal": float(cloud.focal_px),
            "view": asdict(view),
            "growth": None if cloud.growth is None else _bytes_text(np.round(cloud.growth[finite] * 50).astype(np.uint8)),
            "colors": [{"rgb": _bytes_text(rgb[finite].astype(np.uint8))} for rgb in cloud.colors.values()],
        }
        buttons = "".join(
            f'<button type="button" aria-pressed="{"false" if index else "true"}">{escape(name)}</button>'
            for index, name in enumerate(cloud.colors)
        )
        self._card(
            '<div class="stage"><canvas width="800" height="416" role="img" aria-label="point cloud"></canvas></div>'
            f'<div class="controls"><span>color:</span>{buttons}<span>{escape(text)}</span></div>'
            f'<script type="application/json">{json.dumps(content)}</script>',
            heading,
            "data-points",
        )

    def clouds(self, clouds: Sequence[tuple[Cloud, str]]) -> None:
        """Add cards with point clouds beside each other, each with its heading; below each other on a narrow screen."""
        start = len(self._parts)
        for cloud, heading in clouds:
            self.cloud(cloud, heading)
        cards = "".join(self._parts[start:])
        columns = f"grid-template-columns:repeat({len(clouds)},1fr)"
        self._parts[start:] = [f'<div class="grid collapses side" style="{columns}">{cards}</div>']

    def table(
        self,
        rows: Sequence[Row],
        columns: Sequence[str] | None = None,
        *,
        best: Mapping[str, str] | None = None,
        heading: str = "",
        digits: int = 3,
    ) -> None:
        """Add a table.

        Args:
            rows: One mapping per row.
            columns: Which keys, in which order; by default all.
            best: Columns whose best value is marked: name to ``"high"`` or ``"low"``.
            heading: Above the table.
            digits: Significant digits of floats.
        """
        columns = list(columns or column_names(rows))
        marks = {name: (max if kind == "high" else min) for name, kind in (best or {}).items()}
        winners: dict[str, Any] = {}
        for name, choose in marks.items():
            values = [row[name] for row in rows if isinstance(row.get(name), (int, float)) and row[name] == row[name]]
            winners[name] = choose(values) if values else None
        words = [any(isinstance(row.get(name), str) for row in rows) for name in columns]
        lines = []
        for row in rows:
            cells = []
            for name, word in zip(columns, words):
                value = row.get(name)
                kind = "word" if word else "best" if value is not None and value == winners.get(name) else ""
                cells.append(f'<td class="{kind}">{escape(format_value(value, digits))}</td>')
            lines.append(f"<tr>{''.join(cells)}</tr>")
        head = "".join(f'<th class="{"word" if w else ""}">{escape(name)}</th>' for name, w in zip(columns, words))
        self._card(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>',
            heading,
        )

    def figures(self, pairs: Sequence[tuple[Figure, Figure | None]], heading: str = "", alt: str = "plot") -> None:
        """Add plots beside each other: pairs of a light one and a dark one for readers whose system is dark."""
        images = []
        for light, dark in pairs:
            source = ""
            if dark is not None:
                uri = data_uri(figure_bytes(dark), "image/svg+xml")
                source = f'<source media="(prefers-color-scheme: dark)" srcset="{uri}">'
            uri = data_uri(figure_bytes(light), "image/svg+xml")
            images.append(f'<picture>{source}<img alt="{escape(alt)}" src="{uri}"></picture>')
        self._card(f'<div class="grid collapses" style="{_columns(len(pairs))}">{"".join(images)}</div>', heading)

    def _card(self, body: str, heading: str, attribute: str = "") -> None:
        title = f"<h3>{escape(heading)}</h3>" if heading else ""
        self._parts.append(f'<section class="card" {attribute}>{title}{body}</section>')

    def body(self) -> str:
        """The parts alone, for a page of another frame; it needs ``page.css`` and, after them, ``page.js``."""
        return "\n".join(self._parts)

    def render(self) -> str:
        """The whole page as text."""
        room = files("noise2map.report")
        style = room.joinpath("page.css").read_text(encoding="utf-8")
        script = room.joinpath("page.js").read_text(encoding="utf-8")
        links = "".join(f'<a href="#s{i}">{escape(name)}</a>' for i, name in enumerate(self._sections, start=1))
        lead = f"<p>{escape(self.lead)}</p>" if self.lead else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style></head>\n<body>"
            f"<header><h1>{escape(self.title)}</h1>{lead}<nav>{links}</nav></header>\n<main>\n"
            + self.body()
            + f"\n</main>\n<footer>{escape(self._footer)}</footer>\n<script>\n{script}</script></body></html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page at once; broken bytes of file names become question marks.

        Raises:
            OSError: If the file cannot be written.
        """
        write_bytes(path, self.render().encode("utf-8", "replace"))


def _grid(rows: Sequence[Sequence[Cell | None]]) -> str:
    columns = max(len(row) for row in rows)
    padded = [[*row, *[None] * (columns - len(row))] for row in rows]
    figures = "".join("<div></div>" if cell is None else _figure(cell) for row in padded for cell in row)
    return f'<div class="scroll"><div class="grid" style="{_columns(columns)}">{figures}</div></div>'


def _columns(count: int) -> str:
    return f"grid-template-columns:repeat({count},minmax(150px,1fr))"


def _figure(cell: Cell) -> str:
    note = f"<span>{escape(cell.note)}</span>" if cell.note else ""
    small = ' class="pixels"' if cell.image.shape[1] <= 400 else ""
    return (
        f"<figure><figcaption><b>{escape(cell.title)}</b>{note}</figcaption>"
        f'<img{small} alt="{escape(cell.title)}" src="{image_uri(cell.image)}">{color_bar(cell.bar)}</figure>'
    )


def color_bar(bar: ColorBar | None) -> str:
    """A color bar with its ticks as HTML, as wide as what it stands in; nothing for None."""
    if bar is None:
        return ""
    stops = ",".join(to_hex(colormaps[bar.color_map](x)) for x in np.linspace(0, 1, 17))
    spans, before = [], -1.0
    for value in ticks(bar.low, bar.high, bar.log, limit=6):
        if bar.log:
            share = float(np.log(value / bar.low) / np.log(bar.high / bar.low))
        else:
            share = (value - bar.low) / (bar.high - bar.low)
        if share - before < 0.11:
            continue
        before = share
        text = f"{'≥ ' if bar.open_end and value >= bar.high * 0.999 else ''}{value:.4g} {bar.unit}".rstrip()
        edge = "first" if share < 0.04 else "last" if share > 0.93 else ""
        spans.append(f'<span class="{edge}" style="left:{share * 100:.1f}%">{escape(text)}</span>')
    return f'<div class="bar" style="background:linear-gradient(90deg,{stops})"></div><div class="ticks">{"".join(spans)}</div>'


def _legend(entries: Legend) -> str:
    if not entries:
        return ""
    items = "".join(f'<li><i style="background:rgb{color}"></i>{escape(name)}</li>' for color, name in entries)
    return f'<ul class="legend">{items}</ul>'
