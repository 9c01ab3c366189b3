"""Metrics that also keep one row of numbers for each image."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PerImageMetric(Metric):
    """A metric with a row for each image beside its sums.

    Args:
        row_shape: Shape of a row.
        dtype: Type of a row.
        keep_per_image: Whether rows are kept.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    rows: list[Tensor]

    def __init__(self, row_shape: tuple[int, ...], dtype: torch.dtype, keep_per_image: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.row_shape, self.row_dtype, self.keep_per_image = row_shape, dtype, keep_per_image
        self.add_state("rows", [], dist_reduce_fx="cat")

    def _keep(self, rows: Tensor) -> None:
        if self.keep_per_image:
            self.rows.append(rows)

    def _no_rows(self) -> Tensor:
        return torch.zeros((0, *self.row_shape), dtype=self.row_dtype, device=self.device)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; one that saw no image takes part with no rows instead of hanging."""
        if self.keep_per_image and not self.rows:
            self.rows.append(self._no_rows())
        super().sync(*args, **kwargs)

    def per_image(self) -> Tensor:
        """Rows of the images seen, in the order of the updates."""
        rows = self.rows if isinstance(self.rows, list) else [self.rows]  # one tensor once gathered
        return dim_zero_cat([self._no_rows(), *rows])
