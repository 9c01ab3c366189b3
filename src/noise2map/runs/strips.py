"""Large arrays converted a strip of rows at a time: intermediate numbers of a whole image would take many times its memory."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_STRIP = 2**20  # values


def by_strips(convert: "Callable[[np.ndarray], np.ndarray]", values: "np.ndarray") -> "np.ndarray":
    """What a conversion gives that looks at every pixel by itself.

    Args:
        convert: ``(n, W, ...)`` -> ``(n, W, ...)``, the same for any rows.
        values: ``(H, W, ...)``.

    Returns:
        ``convert(values)``.
    """
    import numpy as np

    if values.ndim < 2 or values.size <= _STRIP:
        return convert(values)
    rows = max(1, _STRIP // (values.size // len(values)))
    first = convert(values[:rows])
    out = np.empty((len(values), *first.shape[1:]), first.dtype)
    out[:rows] = first
    for start in range(rows, len(values), rows):
        out[start : start + rows] = convert(values[start : start + rows])
    return out
