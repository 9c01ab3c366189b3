"""Elements of panels: fonts, themes, color bars with ticks, legends."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from noise2map.report.palettes import colorize

Color = tuple[int, int, int]
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, separators of lines and paragraphs


@dataclass(frozen=True)
class Theme:
    """Colors of everything that is not data."""

    background: Color
    text: Color
    muted: Color
    line: Color


THEMES = {
    "light": Theme((255, 255, 255), (24, 26, 31), (104, 108, 118), (206, 209, 216)),
    "dark": Theme((20, 22, 27), (234, 236, 240), (152, 157, 168), (62, 66, 76)),
}


@dataclass(frozen=True)
class ColorBar:
    """Meaning of the colors of a cell.

    Attributes:
        low: The value at the left end.
        high: The value at the right end.
        color_map: A name that matplotlib knows.
        log: Whether colors are spaced by the logarithm.
        unit: Written after the last tick.
        open_end: Whether larger values are clipped to the last color, said by a ``≥``.
    """

    low: float
    high: float
    color_map: str
    log: bool = False
    unit: str = ""
    open_end: bool = False


@lru_cache(maxsize=32)
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, so that panels look the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def printable(text: str) -> str:
    """A text that can be drawn and written: line breaks, control characters and broken bytes of file names become ``�``.

    Pillow's text layout fails on a line break, and UTF-8 on the stand-ins of bytes that are no text.
    """
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(one) in _UNPRINTABLE else one for one in text)


def fit_text(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Cut a text in the middle until it fits in ``room`` pixels; the ends of file names tell most. See :func:`printable`."""
    text = printable(text)
    if font.getlength(text) <= room:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(_cut(text, keep)) > room:
        keep -= 1
    return _cut(text, keep) if keep > 2 else ""


def _cut(text: str, keep: int) -> str:
    head = keep // 2
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"


def ticks(low: float, high: float, log: bool, limit: int = 6) -> list[float]:
    """Round numbers between ``low`` and ``high`` to write on a scale.

    Args:
        low: Start of the scale.
        high: End of the scale.
        log: Whether the scale is logarithmic: then 1, 2, 5, 10, ... where at least three of them fit.
        limit: The most ticks.

    Returns:
        Increasing values in ``[low, high]``.
    """
    if log:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            marks = [digit * 10.0**decade for decade in decades for digit in digits]
            inside = [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
            if len(inside) <= limit:
                break
        if len(inside) >= 3:
            return inside
    ticks = MaxNLocator(nbins=limit - 1, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3).tick_values(low, high)
    slack = (high - low) * 1e-6
    return [float(mark) for mark in ticks if low - slack <= mark <= high + slack]


def draw_color_bar(canvas: Image.Image, bar: ColorBar, corner: tuple[int, int], width: int, colors: Theme) -> None:
    """Draw a color bar of ``width`` pixels with ticks below it; it is about 32 pixels high."""
    left, top = corner
    draw = ImageDraw.Draw(canvas)
    height, font = 9, load_font(12)
    unit_positions = np.linspace(0, 1, max(width, 2))[None]
    gradient = colorize(np.repeat(unit_positions, height, axis=0), 0.0, 1.0, bar.color_map)
    canvas.paste(Image.fromarray(gradient), (left, top))
    right_edge = -np.inf
    marks = ticks(bar.low, bar.high, bar.log, limit=max(min(7, width // 50), 2))
    for index, value in enumerate(marks):
        if bar.log:
            position = np.log(value / bar.low) / np.log(bar.high / bar.low)
        else:
            position = (value - bar.low) / (bar.high - bar.low)
        x = left + float(np.clip(position, 0, 1)) * (width - 1)
        last = index == len(marks) - 1
        text = f"{value:.4g}" + (f" {bar.unit}" if bar.unit and last else "")
        if bar.open_end and value >= bar.high * 0.999:
            text = f"≥ {text}"
        text_width = font.getlength(text)
        start = min(max(x - text_width / 2, left), left + width - text_width)
        if start < right_edge + 6:
            continue
        draw.line([(x, top + height), (x, top + height + 3)], fill=colors.muted)
        draw.text((start, top + height + 4), text, colors.muted, font)
        right_edge = start + text_width


def draw_legend(
    draw: ImageDraw.ImageDraw | None,
    entries: Sequence[tuple[Color, str]],
    corner: tuple[int, int],
    width: int,
    colors: Theme,
) -> int:
    """Draw color swatches with names, as many in a line as fit.

    Args:
        draw: What to draw on; None only measures.
        entries: Pairs of color and name.
        corner: Left and top, in pixels.
        width: The room there is.
        colors: The theme.

    Returns:
        The height it takes, 0 without entries.
    """
    if not entries:
        return 0
    left, top = corner
    font, line, swatch = load_font(14), 24, 14
    x = left
    for color, name in ((color, printable(name)) for color, name in entries):
        entry_width = swatch + 7 + int(font.getlength(name)) + 20
        if x > left and x + entry_width - 20 > left + width:
            x, top = left, top + line
        if draw is not None:
            draw.rectangle((x, top + 4, x + swatch - 1, top + 3 + swatch), fill=color, outline=colors.line)
            draw.text((x + swatch + 7, top + 2), name, colors.text, font)
        x += entry_width
    return top - corner[1] + line
