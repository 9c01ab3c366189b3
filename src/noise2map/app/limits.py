"""What one user may ask for, so that memory and time of the server stay bounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEBI, GIBI = 2**20, 2**30


@dataclass(frozen=True)
class Limits:
    """Bounds of the app.

    Attributes:
        upload_bytes: Of one uploaded file.
        pixels: Of an image before it is reduced, read from its header: 8K is 33 million.
        side: Longest side that an image is reduced to, pixels.
        calls: Denoising steps times noise samples of one map.
        run_bytes: Of memory that one map may take, as estimated before it is begun.
        drawing_steps: Steps of a generated image.
        kept_step_bytes: Of all steps of a run; a longer one is shown without its steps.
        waiting: Requests in the queue; further ones are refused.
        kept: Results that can be clicked and downloaded; the oldest are forgotten.
        kept_bytes: Of all of them together.
        connections: Open at once.
        uploads: Files that arrive at once; further ones are refused.
    """

    upload_bytes: int = 20 * MEBI
    pixels: int = 36_000_000
    side: int = 1024
    calls: int = 200
    run_bytes: int = 8192 * MEBI
    drawing_steps: int = 250
    kept_step_bytes: int = 512 * MEBI
    waiting: int = 32
    kept: int = 64
    kept_bytes: int = 512 * MEBI
    connections: int = 64
    uploads: int = 16


LIMITS = Limits()


def whole_number(fields: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    """A whole number of a request.

    Raises:
        ValueError: If it is something else or out of range.
    """
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {_shown(value)}; expected a whole number from {low} to {high}")
    return value


def number(fields: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number of a request; errors as of `whole_number`."""
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {_shown(value)}; expected a number from {low:g} to {high:g}")
    return float(value)


def choice(fields: Mapping[str, Any], name: str, options: Sequence[str], default: str | None = None) -> str | None:
    """One of several words of a request, or the default where there is none.

    Raises:
        ValueError: If it is another word.
    """
    value = fields.get(name)
    if value is None or value == "":
        return default
    if value not in options:
        raise ValueError(f"{name} is {_shown(value)}; expected one of {', '.join(options)}")
    return str(value)


def check_known(fields: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses a field that nobody reads.

    Raises:
        ValueError: Naming it.
    """
    for name in fields:
        if name not in known:
            raise ValueError(f"there is no field {_shown(name)}; expected {', '.join(known)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
