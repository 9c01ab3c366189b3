"""How an image is cut: the largest tiles that stay within a bound on memory."""

from dataclasses import dataclass, replace
from typing import Any

from noise2map.inference.memory import OUTPUT_FLOATS, Workload, estimate_bytes, fitting_batch
from noise2map.models.image_processing import MIN_SIDE
from noise2map.models.resizing import STRIP_FLOATS

GRID = 32
"""Pixels between places where a tile may begin: the cells of the coarsest feature map."""

SMALLEST_TILE = 128
"""Pixels. Less shows a model too little of a scene."""

LARGEST_OVERLAP = 256

# A process that has loaded Python, PyTorch and transformers; counted alike everywhere, so that a bound gives the same
# tiles on every machine.
_LIBRARIES = 500 * 2**20
_CELL = 4  # pixels for a side of a cell of the map
_STRIPS = 6  # maps of `STRIP_FLOATS` that are alive when a blended map is brought to the size of the image
_READ = 6  # bytes for a pixel of the image: as it was read, and while it is converted or decoded
_KINDS = 8  # maps of uncertainty, weights, and the map of the whole image that depth is aligned with


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of an image lie, in pixels of the image as it is processed.

    Attributes:
        size: Width and height of the processed image.
        tile: Width and height of a tile; those at the right and the lower edge may be up to 31 pixels larger.
        overlap: The least that neighbors share.
        rows: First and last row (excluded) of each row of tiles.
        columns: Likewise of each column.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    overlap: int
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    def record(self) -> dict[str, Any]:
        """JSON values: size of a tile, overlap, numbers of columns and rows."""
        return {"size": list(self.tile), "overlap": self.overlap, "grid": [len(self.columns), len(self.rows)]}


def spans(length: int, tile: int, overlap: int) -> tuple[tuple[int, int], ...]:
    """First and last pixel (excluded) of the fewest tiles that cover a length, spread evenly; all begin on the grid of 32 pixels.

    Args:
        length: Pixels to cover.
        tile: Of a tile, a multiple of 32. The last one ends with the image and may be up to 31 pixels longer.
        overlap: The least that neighbors share, a multiple of 32 less than the tile.
    """
    if length < tile + GRID:
        return ((0, length),)
    last = (length - tile) // GRID
    count = -(-last // ((tile - overlap) // GRID)) + 1
    starts = [place * last // (count - 1) * GRID for place in range(count)]
    return tuple((start, length if start == starts[-1] else start + tile) for start in starts)


def cut(size: tuple[int, int], tile: int) -> TilePlan:
    """The plan with square tiles of some size.

    Args:
        size: Width and height of the image as it is processed.
        tile: Side of a tile, a multiple of 32.
    """
    overlap = min(LARGEST_OVERLAP, max(GRID, tile // 4 // GRID * GRID))
    columns, rows = spans(size[0], tile, overlap), spans(size[1], tile, overlap)
    return TilePlan(size, (min(tile, size[0]), min(tile, size[1])), overlap, rows, columns)


@dataclass(frozen=True)
class Tiling:
    """When and how images are cut into tiles.

    Attributes:
        memory: Bytes that the process may have in all (on a GPU: on that device); None for what is free.
        tile: Side of the tiles, pixels, a multiple of 32, for every image that is larger; None for the largest that fit.
        resident: Bytes that were taken when the model had been loaded.
    """

    memory: int | None = None
    tile: int | None = None
    resident: int = 0

    def __post_init__(self) -> None:
        if self.tile is not None and (not isinstance(self.tile, int) or self.tile % GRID or self.tile < 2 * GRID):
            raise ValueError(f"tile is {self.tile!r} pixels; expected a multiple of {GRID}, at least {2 * GRID}")
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"memory is {self.memory!r} bytes; expected at least 1")

    def taken(self, model: Any) -> int:
        """Bytes that are taken before an image comes: weights and, on a CPU, libraries."""
        weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        return max(self.resident, weights + (_LIBRARIES if model.device.type == "cpu" else 0))

    def room(self, model: Any) -> int | None:
        """Bytes that are left for images; None without a bound.

        Raises:
            ValueError: If there is nothing left.
        """
        if self.memory is None:
            return None
        if self.memory <= self.taken(model):
            raise ValueError(
                f"memory is {_gibi(self.memory)}; the model and its libraries alone take {_gibi(self.taken(model))}, expected more"
            )
        return self.memory - self.taken(model)

    def plan_unless_whole(self, model: Any, image_size: tuple[int, int], work: Workload) -> TilePlan | None:
        """How an image is cut; None if it stays whole.

        Args:
            model: The model, on its device.
            image_size: Width and height of the image.
            work: What it is to be processed whole.

        Raises:
            ValueError: As `plan`.
        """
        if self.tile is None:
            try:
                fitting_batch(model.config, replace(work, batch_size=1), model.device, model.dtype.itemsize, self.room(model))
                return None
            except ValueError:  # it does not fit whole
                if self.memory is None:
                    raise
        return self.plan(model, image_size, (work.width, work.height), work.ensemble_size)

    def plan(self, model: Any, image_size: tuple[int, int], size: tuple[int, int], samples: int) -> TilePlan | None:
        """How an image is cut; None if it is not.

        Args:
            model: The model, on its device.
            image_size: Width and height of the image.
            size: Width and height at which it is processed.
            samples: Noise samples.

        Raises:
            ValueError: If not even the smallest tiles stay within the bound.
        """
        room = self.room(model)
        largest = -(-max(size) // GRID) * GRID
        if self.tile is not None:
            if self.tile >= max(size):
                return None
            plan = cut(size, self.tile)
            if room is not None and (needed := needed_bytes(model, image_size, plan, samples)) > room:
                raise ValueError(self._refusal(plan, samples, needed + self.taken(model)))
            return plan
        if room is None:
            return None
        for tile in range(largest, SMALLEST_TILE - 1, -GRID):
            plan = cut(size, tile)
            if (plan.count > 1 or largest <= SMALLEST_TILE) and needed_bytes(model, image_size, plan, samples) <= room:
                return plan
        plan = cut(size, SMALLEST_TILE)
        raise ValueError(self._refusal(plan, samples, needed_bytes(model, image_size, plan, samples) + self.taken(model)))

    def _refusal(self, plan: TilePlan, samples: int, needed: int) -> str:
        bound = "" if self.memory is None else f", the bound is {_gibi(self.memory)}"
        return (
            f"needs about {_gibi(needed)} to be processed at {plan.size[0]}x{plan.size[1]} pixels in tiles of "
            f"{plan.tile[0]}x{plan.tile[1]} with {samples} noise sample(s){bound}; choose a smaller size or fewer samples"
        )


def needed_bytes(model: Any, image_size: tuple[int, int], plan: TilePlan, samples: int) -> int:
    """What an image takes beyond weights and libraries: decoding a tile, or writing the maps, whichever is more.

    Args:
        model: The model, on its device.
        image_size: Width and height of the image.
        plan: Its tiles.
        samples: Noise samples.
    """
    config, on_cpu = model.config, model.device.type == "cpu"
    pixels, processed = image_size[0] * image_size[1], plan.size[0] * plan.size[1]
    tile = tuple(max(last - first for first, last in spans) for spans in (plan.columns, plan.rows))
    work = Workload(1, max(tile[1], MIN_SIDE), max(tile[0], MIN_SIDE), samples, 0)
    decoding = estimate_bytes(config, work, model.dtype.itemsize)
    if not on_cpu:
        return decoding
    per_cell = (_CELL * _CELL if config.upsampling == "convex" else 1) * (max(int(config.num_labels), 8) + _KINDS)
    blended = 4 * per_cell * (processed // _CELL**2)
    noise = 4 * samples * model.codec.channels * (tile[1] // _CELL) * (plan.size[0] // _CELL)
    images = _READ * pixels + (0 if plan.size == image_size else 3 * processed)
    writing = 4 * (OUTPUT_FLOATS * pixels + STRIP_FLOATS * _STRIPS)
    return blended + max(images + decoding + noise, writing)


def _gibi(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
