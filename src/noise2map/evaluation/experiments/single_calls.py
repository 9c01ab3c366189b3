"""What the noisy map tells a model at each level: one decoder call, told a level and shown one of several maps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from noise2map.diffusion import image_generator
from noise2map.diffusion.ensemble import draw_noise, fold, unfold
from noise2map.diffusion.fields import multi_resolution_noise
from noise2map.diffusion.process import add_noise
from noise2map.tasks import task_of

LEVELS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0)
SHOWN = ("noise", "nothing", "own guess", "truth", "another's truth")
_MEMBERS = 2  # samples of a model that is scored by them
_STEP = 1e-2  # of the finite difference, in standard deviations of the start noise


@dataclass
class LevelResult:
    """What came of one level and one kind of map.

    Attributes:
        losses: Loss of each image; NaN where there is no other image of its size whose map could be shown.
        changed: Share of the map that is another than with pure noise, of each image.
        sensitivity: Change of the predicted signal over a small change of the noisy map, of each image (the truth alone).
        metric: Scores of the maps.
    """

    metric: Any
    losses: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    sensitivity: list[float] = field(default_factory=list)


def sample_batches(model: Any, processor: Any, dataset: Any, batch_size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Inputs with labels of samples that are processed at one size, ids of places in the dataset and raw samples with them."""
    task = task_of(model)
    waiting: dict[Any, list[int]] = {}

    def made(indices: list[int]) -> tuple[list[int], dict[str, Any]]:
        samples = [dataset[index] for index in indices]
        return indices, {**task.batch(processor, samples), "samples": samples}

    for index in range(len(dataset)):
        sample = dataset[index]
        size = tuple(task.batch(processor, [sample])["pixel_values"].shape) if task.of_images else ()
        waiting.setdefault(size, []).append(index)
        if len(waiting[size]) == batch_size:
            yield made(waiting.pop(size))
    for indices in waiting.values():
        yield made(indices)


class SingleCalls:
    """One decoder call at each level, shown each kind of map, all corrupted by the same noise.

    - `noise`: pure noise: what being told the level alone changes.
    - `nothing`: zeros, which no level has.
    - `own guess`: the model's answer to pure noise, corrupted to the level, as in sampling.
    - `truth`: the true map, corrupted likewise: how far the map is read at all, as in training.
    - `another's truth`: that of the image before of the same size: a model that reads its map is misled by it.

    Args:
        model: A map model in evaluation mode; one without diffusion has the first level and no map.
        levels: Times, 1 (pure noise) to 0 (clean).
        seed: With an image's id it fixes its noise.
    """

    def __init__(self, model: Any, levels: Sequence[float] = LEVELS, seed: int = 0) -> None:
        self.model, self.seed, self.task = model, seed, task_of(model)
        self.levels, self.shown = (levels, SHOWN) if model.config.diffusion else (levels[:1], SHOWN[:1])
        self.results = {(t, kind): LevelResult(self.task.training_metric(model.config)) for t in self.levels for kind in self.shown}
        self.order: list[int] = []
        self._before: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def update(self, indices: Sequence[int], batch: dict[str, Any], processor: Any) -> None:
        """Takes a batch of `sample_batches`."""
        model, config = self.model, self.model.config
        ids = [str(sample.get("id", index)) for index, sample in zip(indices, batch["samples"])]
        features, labels = self.task.encode(model, batch), batch["labels"].to(model.device)
        context, size = model.decoder.prepare(features), (features.shape[-2], features.shape[-1])
        generators = [image_generator(self.seed, one) for one in ids]
        shape = (1, model.codec.channels, *size)
        noise = fold(draw_noise(shape, generators, features.device))
        if not config.diffusion:
            noise = torch.zeros_like(noise)
        latent = None
        if config.noise_channels:
            latent = fold(multi_resolution_noise(config.noise_channels, _MEMBERS, size, generators, features.device))
        cells, _ = model.predict_both(context, noise, torch.ones(len(ids)))
        truth = model.encode_labels(labels, size)
        others = self._others(truth)
        maps = {"own guess": model.prediction_encoder()(cells), "truth": truth, "another's truth": others}
        self.order += indices
        for t in self.levels:
            pure: Tensor | None = None
            for kind in self.shown:
                found = self.results[t, kind]
                if kind == "another's truth" and others is None:
                    found.losses.append(math.nan)
                    found.changed.append(math.nan)
                    continue
                x_t = torch.zeros_like(noise) if kind == "nothing" else self._noisy(maps.get(kind), noise, t)
                members = self._predict(context, x_t, t, latent)
                prediction = members[:: len(members) // len(ids)]
                pure = prediction if pure is None else pure
                found.losses += self._losses(members, labels)
                found.changed += self._changed(pure, prediction)
                self.task.update_metric(found.metric, model.make_output(prediction), batch, processor)
                if kind == "truth":
                    found.sensitivity += self._sensitivity(context, x_t, t, latent, prediction)

    def _others(self, truth: Tensor) -> Tensor | None:
        """The encoded truth of the image before of that size; the first of all has that of the last of its batch.

        None for an image that is alone in its batch, with none of its size before.
        """
        size = tuple(truth.shape[1:])
        last = self._before.get(size, truth[-1:] if len(truth) > 1 else None)
        self._before[size] = truth[-1:]
        return None if last is None else torch.cat([last, truth[:-1]])

    def _noisy(self, x0: Tensor | None, noise: Tensor, t: float) -> Tensor:
        if x0 is None:
            return noise
        levels = self.model.schedule.alpha_sigma(torch.tensor([t]))
        return add_noise(x0, noise.to(x0.dtype), *(level.to(x0.device, x0.dtype) for level in levels))

    def _predict(self, context: Any, x_t: Tensor, t: float, latent: Tensor | None) -> Tensor:
        """Predictions ``(B, ...)``, or ``(2 B, ...)`` of two samples of a model whose calls draw samples."""
        if latent is not None:
            x_t = x_t.repeat_interleave(_MEMBERS, 0)
        return self.model.predict_at(context, x_t, torch.full((len(x_t),), t), latent)

    def _losses(self, prediction: Tensor, labels: Tensor) -> list[float]:
        """Loss of each image: that of the task, or the score of two samples."""
        if len(prediction) == len(labels):
            return [float(self.model.loss(one[None], label[None])) for one, label in zip(prediction, labels)]
        return [float(self.model.sample_loss(pair[None], label[None])) for pair, label in zip(unfold(prediction, _MEMBERS), labels)]

    def _changed(self, before: Tensor, after: Tensor) -> list[float]:
        """Share of each image's map that differs, as the task counts differences of steps."""
        aggregator, everyone = self.model.make_aggregator(len(after), 1, "last"), torch.ones(len(after), dtype=torch.bool)
        aggregator.update(before, everyone)
        return aggregator.update(after, everyone).tolist()

    def _sensitivity(self, context: Any, x_t: Tensor, t: float, latent: Tensor | None, prediction: Tensor) -> list[float]:
        """Root mean square of the change of the predicted signal over that of the noisy map, along one random direction."""
        generator = torch.Generator().manual_seed(self.seed)
        direction = torch.randn(x_t.shape[1:], generator=generator).to(x_t)
        moved = self._predict(context, x_t + _STEP * direction, t, latent)
        signals = [self.model.expected_signal(self.model.map_of(one)) for one in (prediction, moved[:: len(moved) // len(x_t)])]
        change = (signals[1] - signals[0]).flatten(1).square().mean(1).sqrt()
        return (change / (_STEP * direction.square().mean().sqrt())).tolist()
