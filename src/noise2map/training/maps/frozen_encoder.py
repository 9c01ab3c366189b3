"""Training of decoders on a frozen encoder, whose features may be kept on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from noise2map.training.batches import MapCollator
from noise2map.training.maps.feature_cache import CachedViews, FeatureCache, SceneViews, Views, fingerprint_of
from noise2map.training.maps.trainer import MapTrainer


class FrozenEncoderTrainer(MapTrainer):
    """Trains all of a map model but its encoder.

    Args:
        model: a map model.
        args: transformers' training arguments.
        cache_folder: where features are kept; `None` encodes samples anew in each step, augmented by ``transform``.
        views: what is cached of each sample, in place of ``transform``.
        window: ``(width, height)`` in pixels of random windows of what is cached, see :class:`CachedViews`.
        **kwargs: of :class:`~noise2map.training.maps.trainer.MapTrainer`.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if it holds other features.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        cache_folder: str | Path | None = None,
        views: Views | SceneViews | None = None,
        window: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        model.encoder.requires_grad_(False)
        super().__init__(model, args, **kwargs)
        self.cache: FeatureCache | None = None
        self.window = window
        if cache_folder is not None and views is not None:
            fingerprint = fingerprint_of(model.encoder, self.processing_class, self.train_dataset, views)
            self.cache = FeatureCache(cache_folder, self._encode, self.train_dataset, views, fingerprint)
            self.data_collator = FeatureCollator(self.data_collator)

    @torch.no_grad()
    def _encode(self, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        model = self.accelerator.unwrap_model(self.model).eval()
        return self.task.encode(model, MapCollator(self.processing_class, self.task)([dict(sample) for sample in samples]))

    def training_samples(self) -> Dataset:
        """See :meth:`~noise2map.training.seeded_trainer.SeededTrainer.training_samples`."""
        if self.cache is None:
            return super().training_samples()
        return CachedViews(self.train_dataset, self.cache, self.args.seed, self.window)

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The encoder stays as it is in use: statistics of batches and dropout, too, would change its features."""
        self.accelerator.unwrap_model(model).encoder.eval()
        return super().compute_loss(model, *args, **kwargs)


class FeatureCollator:
    """Batches with the features that their samples bring.

    Args:
        collator: what makes the rest of the batch, where samples hold more than features and labels.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch with ``features`` ``(B, C, h, w)``, float32."""
        features = torch.stack([sample["features"] for sample in samples]).float()
        if set(samples[0]) == {"features", "labels"}:
            return {"labels": torch.stack([torch.from_numpy(sample["labels"]) for sample in samples]), "features": features}
        return {**self.collator(samples), "features": features}
