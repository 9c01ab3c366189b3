"""Decodes an image tile by tile: one field of noise, depth aligned with the map of the whole image, overlaps blended."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from noise2map.diffusion import image_generator
from noise2map.diffusion.fields import blocks_of, cells_of_blocks
from noise2map.diffusion.streamed import StreamedNoise
from noise2map.inference.tiling.plan import GRID, TilePlan
from noise2map.models import MapModel, Noise2MapImageProcessor
from noise2map.models.decoding import PredictionOptions
from noise2map.models.resizing import resize_map
from noise2map.tasks.base import ImageTask

_CELL = 4  # pixels for a side of a cell
_LEAST_WEIGHT = 1e-3  # of the outermost cells of a tile, where an image was cut


class TileNoise:
    """The part of an image's fields of noise that a tile gets, as `decode_map` takes it.

    The fields are numbered in the order in which the first tile asks for them: it is that of the draws of a whole image. Those of
    single steps are drawn anew for every tile, so that many steps take no more memory than one.

    Args:
        generator: Of the image.
        shape: Of the whole field ``(R, C, h, w)``.
    """

    def __init__(self, generator: torch.Generator, shape: tuple[int, int, int, int]) -> None:
        self.streamed, self.shape = StreamedNoise(generator), shape
        self._order: dict[tuple[int, ...], int] = {}

    def start(self, top: int, left: int, size: tuple[int, int]) -> Tensor:
        """Start noise ``(1, R, C, h, w)`` of the cells from a corner on."""
        return self._rows((), self.shape, top, top + size[0])[None, ..., left : left + size[1]]

    def later(self, top: int, left: int, size: tuple[int, int]) -> Callable[[int, Tensor], Tensor]:
        """Fresh noise after each step, for samplers that add some: ``(index, x_t) -> (R, C, h, w)``."""
        return lambda index, x_t: self._rows((index,), self.shape, top, top + size[0])[..., left : left + size[1]].to(x_t)

    def latent(self, channels: int, top: int, left: int, size: tuple[int, int]) -> Callable[[int], Tensor]:
        """Noise channels of each step, for models that have some: ``index -> (R, n, h, w)``."""

        def part(index: int, channel: int) -> Tensor:
            shape = self.shape[0], 1, *blocks_of(channel, self.shape[2:])
            first, last = top // 4**channel, -(-(top + size[0]) // 4**channel)
            blocks = self._rows((index, channel), shape, first, last)
            return cells_of_blocks(blocks, channel, (top - first * 4**channel, left), size)

        return lambda index: torch.cat([part(index, channel) for channel in range(channels)], 1)

    def _rows(self, field: tuple[int, ...], shape: tuple[int, int, int, int], top: int, bottom: int) -> Tensor:
        """Rows of the field of a step (and channel); of the start noise, ``()``, they are kept for the next tile."""
        return self.streamed.rows(self._order.setdefault(field, len(self._order)), shape, top, bottom, keep=not field)


def ramp(first: int, last: int, end: int, overlap: int) -> Tensor:
    """Weights of the cells of a tile along one side: rising over the overlap where the image goes on, 1 elsewhere.

    Args:
        first: First cell of the tile.
        last: Its last cell, excluded.
        end: Cells of the image.
        overlap: Cells over which they rise, at least 1.
    """
    place = torch.arange(first, last, dtype=torch.float32) + 0.5
    rising = torch.ones_like(place) if first == 0 else (place - first) / overlap
    falling = torch.ones_like(place) if last >= end else (last - place) / overlap
    return torch.minimum(rising, falling).clamp(_LEAST_WEIGHT, 1)


def map_size(model: MapModel, width: int, height: int) -> tuple[int, int]:
    """Height and width of the features of an image: what its backbone makes of the last few pixels decides."""
    rest = height % GRID + GRID, width % GRID + GRID
    features = model.encode_image(torch.zeros(1, 3, *rest, device=model.device))
    return (height - rest[0]) // _CELL + features.shape[-2], (width - rest[1]) // _CELL + features.shape[-1]


class Blend:
    """The weighted mean of tiles.

    Args:
        cells: Height and width of the features of the image.
        scale: Pixels of the map for a side of a cell.
        overlap: Cells over which weights rise.
        kinds: Names of the uncertainties.
    """

    def __init__(self, cells: tuple[int, int], scale: int, overlap: int, kinds: list[str]) -> None:
        self.size = cells[0] * scale, cells[1] * scale
        self.scale, self.overlap, self.kinds, self.steps = scale, overlap * scale, kinds, 0
        self._total: Tensor | None = None
        self._weights = torch.zeros(1, 1, *self.size)

    def place(self, corner: tuple[int, int], values: Tensor) -> tuple[Any, slice, slice]:
        """Where the values ``(1, K, h, w)`` of a tile belong, given the cell of its corner."""
        top, left = corner[0] * self.scale, corner[1] * self.scale
        return ..., slice(top, top + values.shape[-2]), slice(left, left + values.shape[-1])

    def add(self, corner: tuple[int, int], values: Tensor, out: Any) -> None:
        """Adds a tile: the map ``(1, K, h, w)`` as it is to be averaged, with the uncertainties of an output."""
        values = torch.cat([values, *(out.uncertainties[name][:, None].float().cpu() for name in self.kinds)], 1)
        if self._total is None:
            self._total = torch.zeros(1, values.shape[1], *self.size)
        region = _, rows, columns = self.place(corner, values)
        weight = ramp(rows.start, rows.stop, self.size[0], self.overlap)[:, None]
        weight = weight * ramp(columns.start, columns.stop, self.size[1], self.overlap)
        self._total[region] += values * weight
        self._weights[region] += weight
        self.steps = max(self.steps, int(out.num_steps.max()))

    def mean(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean map ``(1, K, h, w)`` and the mean uncertainties ``(1, h, w)``; to be asked for once."""
        assert self._total is not None
        self._total /= self._weights
        channels = self._total.shape[1] - len(self.kinds)
        return self._total[:, :channels], {name: self._total[:, channels + place] for place, name in enumerate(self.kinds)}


class TiledDecoder:
    """Decodes the tiles of one image.

    Args:
        model: The model, on its device.
        processor: Its image processor.
        task: What its maps are.
        options: With every value chosen.
        align: Whether maps without a level of their own are brought to that of the map of the whole image.
    """

    def __init__(
        self,
        model: MapModel,
        processor: Noise2MapImageProcessor,
        task: ImageTask,
        options: PredictionOptions,
        align: bool = True,
    ) -> None:
        self.model, self.processor, self.task, self.options, self.align = model, processor, task, options, align

    def decode(self, image: Image.Image, image_id: str, plan: TilePlan) -> Any:
        """The map of an image, see `MapModel.decode_map`: at the resolution of the features, on the CPU.

        Tiles are blended as probabilities, logarithms of depths, and directions, with weights that rise over the overlap;
        uncertainties likewise. The number of steps is that of the tile that took most.

        Args:
            image: RGB, of any size.
            image_id: With the seed it fixes the noise: what the whole image would be decoded from.
            plan: Its tiles.
        """
        whole = self._anchor(image, image_id, plan) if self.align and self.task.in_metres else None
        if image.size != plan.size:
            image = image.resize(plan.size, self.processor.resample)
        size = map_size(self.model, *plan.size)
        shape = (self.options.ensemble_size or 1, self.model.codec.channels, *size)
        noise = TileNoise(image_generator(self.options.seed, image_id), shape)
        blend: Blend | None = None
        for top, bottom in plan.rows:
            for left, right in plan.columns:
                corner = top // _CELL, left // _CELL
                out, cells = self._tile(image.crop((left, top, right, bottom)), corner, noise)
                values = self.task.blendable(self.model.whole_prediction(out), bool(out.log_probabilities)).cpu()
                if blend is None:  # a map may have several pixels for each cell: convex upsampling
                    blend = Blend(size, values.shape[-1] // cells[1], plan.overlap // _CELL, list(out.uncertainties or {}))
                    anchor = None if whole is None else resize_map(whole[:, :1], blend.size)
                if anchor is not None:
                    values = self.task.aligned(values, anchor[blend.place(corner, values)])
                blend.add(corner, values, out)
        assert blend is not None
        return self._output(blend, bool(out.log_probabilities))

    def _output(self, blend: "Blend", log_probabilities: bool) -> Any:
        mean, kinds = blend.mean()
        return self.model.make_output(
            self.task.blended(mean),
            log_probabilities=log_probabilities,
            uncertainty=kinds.get(self.model.config.uncertainty or self.model.default_uncertainty),
            uncertainties=kinds,
            num_steps=torch.tensor([blend.steps]),
            calibration=self.model.calibration,
        )

    def _tile(self, image: Image.Image, corner: tuple[int, int], noise: TileNoise) -> tuple[Any, tuple[int, int]]:
        pixels = self.processor(images=image, do_resize=False, return_tensors="pt")["pixel_values"].to(self.model.device)
        features = self.model.encode_image(pixels)
        del pixels
        size = features.shape[-2], features.shape[-1]
        drawn: dict[str, Any] = {"noise": noise.start(*corner, size), "step_noise": noise.later(*corner, size)}
        if self.model.config.noise_channels:
            drawn["latent_noise"] = noise.latent(self.model.config.noise_channels, *corner, size)
        return self.options.decode(self.model, features, (), **drawn), size

    def _anchor(self, image: Image.Image, image_id: str, plan: TilePlan) -> Tensor:
        """The map of the whole image, as its model sees it best, or as large as a tile: ``(1, K', h, w)``, blendable."""
        width, height = self.processor.processed_size(*image.size)
        shrunk = min(1.0, ((plan.tile[0] * plan.tile[1]) / (width * height)) ** 0.5)
        size = {"height": max(GRID, int(height * shrunk)), "width": max(GRID, int(width * shrunk))}
        inputs = self.processor(images=image, do_resize=True, size=size, keep_aspect_ratio=False, return_tensors="pt")
        features = self.model.encode_image(inputs["pixel_values"].to(self.model.device))
        out = self.options.decode(self.model, features, [image_id])
        return self.task.blendable(self.model.whole_prediction(out), bool(out.log_probabilities)).cpu()
