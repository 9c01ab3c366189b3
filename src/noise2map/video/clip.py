"""Maps of the frames of a clip: one field of noise, and runs that begin where the frame before ended."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noise2map.diffusion.ensemble import unfold
from noise2map.inference.batches import ImageBatch, batches
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import PredictionOptions
from noise2map.models.denoising.run import WarmStart, check_warm_level
from noise2map.tasks.prediction import Prediction
from noise2map.video.reading import VideoReader

Flow = tuple[Any, Any]
"""Arrays or tensors: columns and rows ``(H, W, 2)`` from a pixel to its place in the frame before, in pixels, and whether it was
seen there, boolean ``(H, W)``; the files ``flow/*.npz`` of rendered walks hold both."""


class ClipPredictor(Predictor):
    """Predicts the frames of one clip in their order.

    Every frame starts from the same noise, that of ``(seed, clip)``: what differs between two maps is due to the images.
    With a warm start the run of a frame begins at an intermediate noise level, from the map of the frame before and that noise; it
    takes as many calls as a whole one.

    Args:
        predictor: The model with its processor.
        clip: Name of the clip, which with the seed fixes the noise.
        options: Steps, samples, seed, size.
        warm_start: Noise level at which the run of a frame begins, between 0 and 1: the lower, the more is taken over. None: every
            frame is a run of its own.

    Attributes:
        options: With the checkpoint's values where none was chosen.
        state: The clean signal ``(1, R, C, h, w)`` that the newest frame ended with; None before, and without a warm start.

    Raises:
        ValueError: If the level is none, or the model makes no run of steps from noise.
    """

    def __init__(
        self, predictor: Predictor, clip: str, options: PredictionOptions | None = None, warm_start: float | None = None
    ) -> None:
        super().__init__(predictor.model, predictor.processor)
        self.tiling, self.clip, self.warm_start = predictor.tiling, clip, warm_start
        self.options = (options or PredictionOptions()).resolved(self.model.config)
        self.state: Tensor | None = None
        self._flow: Flow | None = None
        if warm_start is not None:
            check_warm_level(warm_start)
            if not self.model.config.diffusion or self.options.sampling != "diffusion":
                kind = f"sampling is {self.options.sampling!r}" if self.model.config.diffusion else "the model has no diffusion"
                raise ValueError(f"warm_start needs a run of steps from noise; {kind}")
            if self.tiling is not None:
                raise ValueError("warm_start goes with whole frames, not with tiles; choose a size instead of a memory or a tile")

    def predict_frames(
        self, frames: Iterable[Image.Image], batch_size: int = 8, flows: Iterable[Flow | None] | None = None
    ) -> Iterator[Prediction]:
        """Maps of frames of one size, in their order.

        Args:
            frames: RGB images; taken one by one.
            batch_size: The most frames at a time; with a warm start one.
            flows: Of a warm start, for each frame how it moved since the one before: the map before is moved likewise. None for a
                frame of which that is not known, such as the first.

        Raises:
            ValueError: If there are flows without a warm start, or one is of another shape.
        """
        if flows is not None and self.warm_start is None:
            raise ValueError("flows move the map that a warm start begins from; expected a warm_start with them")
        most = batch_size if self.warm_start is None else 1
        numbered = ((str(number), frame) for number, frame in enumerate(frames))
        moves = iter(flows or ())
        for batch in batches(numbered, self.model, self.processor, self.options, most, tiling=self.tiling):
            self._flow = next(moves, None)
            yield from self.predict_batch(batch, [self.clip] * len(batch), self.options)

    def predict_alone(self, frame: Image.Image) -> Prediction:
        """The map of a frame as that of the first one of a clip; what comes after does not know of it."""
        state, self.state = self.state, None
        prediction = next(self.predict_frames([frame]))
        self.state = state
        return prediction

    @torch.inference_mode()
    def decode_batch(self, batch: ImageBatch[Any], ids: Sequence[str], options: PredictionOptions, at_cells: bool = False) -> Any:
        """See `Predictor.decode_batch`."""
        if self.warm_start is None:
            return super().decode_batch(batch, ids, options, at_cells)
        pixels = self.pixel_values(batch)
        features = self.model.encode_image(pixels)
        begin, shape = None, tuple(features.shape[-2:])
        if self.state is not None and tuple(self.state.shape[-2:]) == shape:
            begin = WarmStart(self.state.to(features.device), self.warm_start)
            if self._flow is not None:
                begin = begin.moved(*(torch.as_tensor(values)[None] for values in self._flow))
        out = options.decode(self.model, features, ids, warm_start=begin, output_steps=True)
        self.state = unfold(out.steps[-1].x0, options.ensemble_size or 1)
        out.steps = None
        return out if at_cells else self.model.at_pixels(out, (pixels.shape[-2], pixels.shape[-1]))

    def saved_state(self) -> dict[str, np.ndarray]:
        """What the next frame needs to know of those before, as arrays; empty where it needs nothing."""
        return {} if self.state is None else {"signal": self.state.float().cpu().numpy()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on where `saved_state` was taken."""
        self.state = torch.from_numpy(state["signal"]) if state else None


def predict_frames(
    source: str | Path,
    predictor: Predictor,
    options: PredictionOptions | None = None,
    *,
    warm_start: float | None = None,
    batch_size: int = 8,
    flows: Iterable[Flow | None] | None = None,
) -> Iterator[Prediction]:
    """Maps of the frames of a clip, one after the other, for programs that want more than a video of them.

    Args:
        source: The clip.
        predictor: The model with its processor.
        options: Steps, samples, averaging, seed, size.
        warm_start: See `ClipPredictor`.
        batch_size: The most frames at a time.
        flows: See `ClipPredictor.predict_frames`.

    Yields:
        One prediction for each frame.

    Raises:
        ImportError: If PyAV is not installed.
        OSError: If there is no such file.
        ValueError: If it is no video or breaks off, or options are invalid.
    """
    reader = VideoReader(source)
    clip = ClipPredictor(predictor, reader.path.name, options, warm_start)
    yield from clip.predict_frames((frame.image for frame in reader.frames()), batch_size, flows)
