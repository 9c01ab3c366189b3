"""Whole maps by a flow from a learnt start (Ribeiro et al. 2025, Flow Stochastic Segmentation Networks, continuous variant)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.diffusion.ensemble import draw_noise
from noise2map.models.distributions.low_rank import LowRankNormal
from noise2map.models.distributions.whole_maps import WholeMaps
from noise2map.models.map_decoder import TimeEmbedding

_LEVELS = 4
_NORM_GROUPS = 8
_TIME_FREQUENCIES = 8
_PAIRS = 4  # of opposite noise, for the marginals


class FlowNetwork(nn.Module):
    """A small U-Net: what a noisy map that began at the decoder's answer will become. Widths and depth are those of the paper.

    Args:
        classes: K.
        context_channels: channels that it is shown beside the noisy map.
        width: its channels, a multiple of 8.
    """

    def __init__(self, classes: int, context_channels: int, width: int) -> None:
        super().__init__()
        given = classes + context_channels
        self.time = TimeEmbedding(_TIME_FREQUENCIES, width)
        self.into = nn.Conv2d(given, width, 3, padding=1)
        self.down = nn.ModuleList(_Block(width, width) for _ in range(_LEVELS))
        self.up = nn.ModuleList(_Block(2 * width, width) for _ in range(_LEVELS - 1))
        self.out = nn.Conv2d(width, classes, 3, padding=1)
        self.direct = nn.Conv2d(given, classes, 1)  # what is plain to see need not go through all of the network

    def forward(self, y: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Logits of the map at the end.

        Args:
            y: noisy maps ``(N, K, h, w)``.
            t: their times ``(N,)``, 0 at the start and 1 at the map.
            context: ``(N, c, h, w)``.

        Returns:
            ``(N, K, h, w)``, float32 or better.
        """
        given = torch.cat([y.to(context.dtype), context], 1).to(self.into.weight.dtype)
        time = self.time(t)
        x, passed = self.into(given), []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.avg_pool2d(x, 2, ceil_mode=True), time)
            passed.append(x)
        for level, block in zip(reversed(range(_LEVELS - 1)), self.up):
            larger = functional.interpolate(x, size=passed[level].shape[-2:], mode="nearest")
            x = block(torch.cat([larger, passed[level]], 1), time)
        logits = self.out(functional.silu(x)) + self.direct(given)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Block(nn.Module):
    """Two convolutions with a path past them; time is added between."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.norm_in, self.conv_in = nn.GroupNorm(_NORM_GROUPS, given), nn.Conv2d(given, width, 3, padding=1)
        self.norm_out, self.conv_out = nn.GroupNorm(_NORM_GROUPS, width), nn.Conv2d(width, width, 3, padding=1)
        self.shift = nn.Linear(width, width)
        self.past = nn.Conv2d(given, width, 1) if given != width else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``(N, C, h, w)`` and embedded times ``(N, width)`` -> ``(N, width, h, w)``."""
        inner = self.conv_in(functional.silu(self.norm_in(x)))
        inner = inner + self.shift(time.to(self.shift.weight.dtype))[:, :, None, None].to(inner.dtype)
        return self.past(x) + self.conv_out(functional.silu(self.norm_out(inner)))


@dataclass
class LogitFlow(WholeMaps):
    """Maps at the end of a flow that starts at noise around what the decoder says.

    ``y_t = (1 - t) u + t y`` with ``u ~ N(start, I)`` and y the one-hot map. The network is taught ``p(y | y_t)`` of each pixel by
    cross entropy; the flow goes along ``(E[y | y_t] - y_t) / (1 - t)``, the mean velocity of all pairs that pass there. The
    paper's code goes along ``E[y | y_t] - u`` with the start that it drew, which is the same where paths do not cross.

    The noise has a fixed deviation of one: were it learnt, it would vanish, as the map can then be read off ``y_t``.

    Attributes:
        start: ``(B, K, h, w)``.
        context: ``(B, c, h, w)``, what else the decoder tells the network.
        network: the flow's.
        steps: Euler steps from noise to a map, network calls each.
        temperature: divides the network's logits.
    """

    start: Tensor
    context: Tensor
    network: FlowNetwork
    steps: int
    temperature: float = 1.0

    @classmethod
    def from_prediction(
        cls, prediction: Tensor, classes: int, network: FlowNetwork, steps: int, temperature: float = 1.0
    ) -> "LogitFlow":
        """From the channels ``(B, K + c, h, w)`` of a head: start, context."""
        start, context = prediction.split([classes, prediction.shape[1] - classes], 1)
        return cls(start, context, network, steps, temperature)

    def marginal_logits(self) -> Tensor:
        """See `WholeMaps.marginal_logits`; of the first call, which can read no map yet, over noise that is always the same."""
        generator = torch.Generator().manual_seed(0)
        t = torch.zeros(len(self.start), device=self.start.device)
        total = torch.zeros_like(self.start)
        for noise in torch.randn(_PAIRS, *self.start.shape[1:], generator=generator).to(self.start):
            for sign in (1, -1):
                total = total + self._chance(self._logits_at(self.start + sign * noise, t, self.context))
        return self._logits(total / (2 * _PAIRS))

    def sample(self, count: int, generators: Sequence[torch.Generator | None]) -> Tensor:
        """See `WholeMaps.sample`."""
        noise = draw_noise((count, *self.start.shape[1:]), generators, self.start.device).to(self.start)
        y = (self.start[:, None] + noise).flatten(0, 1)
        context = self.context.repeat_interleave(count, 0)
        for step in range(self.steps):
            t = step / self.steps
            logits = self._logits_at(y, y.new_full((len(y),), t), context)
            y = y + (self._chance(logits) - y) / (self.steps - step)  # 1 / steps of the way at the speed of 1 / (1 - t)
        return logits.unflatten(0, (-1, count))

    def loss(self, labels: Tensor, ignore_index: int) -> Tensor:
        """See `WholeMaps.loss`; mean cross entropy of the map, given nothing of it, and given it at a time drawn evenly.

        The paper draws times alone. The start is what `marginal_logits` reads and what decides where a map goes, and an even draw
        hardly ever comes near it.
        """
        y, known = self._truth(labels, ignore_index)
        t = torch.stack([torch.zeros(len(y)), torch.rand(len(y))]).to(y)
        at = t[:, :, None, None, None]
        mixed = (1 - at) * (self.start + torch.randn(2, *y.shape).to(y)) + at * y
        logits = self._logits_at(mixed.flatten(0, 1), t.flatten(), self.context.repeat(2, 1, 1, 1)).unflatten(0, (2, -1))
        return 0.5 * self._cross_entropy(logits, y, known)

    def _logits_at(self, y: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.network(y, t, context) / self.temperature

    def _truth(self, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
        """One-hot maps ``(B, K, h, w)``, of unknown cells even; where they are known ``(B, 1, h, w)``."""
        classes = self.start.shape[1]
        known = labels != ignore_index
        y = functional.one_hot(torch.where(known, labels, 0).long(), classes).movedim(-1, 1).to(self.start)
        known = known[:, None]
        return torch.where(known, y, 1 / classes), known

    def _cross_entropy(self, logits: Tensor, y: Tensor, known: Tensor) -> Tensor:
        """Sum over draws ``(M, B, K, h, w)`` of means over known cells."""
        return -(logits.log_softmax(2) * y * known).sum() / known.sum().clamp(min=1)

    def _chance(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def _logits(self, chance: Tensor) -> Tensor:
        return chance.clamp(min=torch.finfo(chance.dtype).tiny).log()


class LayerFlow(LogitFlow):
    """The same of K layers that may overlap: each logit is that of one yes-or-no question, its link the sigmoid."""

    def _truth(self, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
        known = labels != ignore_index
        return torch.where(known, (labels == 1).to(self.start), 0.5), known

    def _cross_entropy(self, logits: Tensor, y: Tensor, known: Tensor) -> Tensor:
        entropy = functional.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none")
        return (entropy * known).sum() * y.shape[1] / known.sum().clamp(min=1)

    def _chance(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def _logits(self, chance: Tensor) -> Tensor:
        return torch.logit(chance, eps=1e-7)


def read_whole_maps(prediction: Tensor, model: Any, normal: type[LowRankNormal], flow: type[LogitFlow]) -> WholeMaps:
    """The distribution of whole maps that a head gave.

    Args:
        prediction: of the head, ``(N, K', h, w)``.
        model: a map model with one of `WHOLE_MAP_OBJECTIVES`.
        normal: kind of a `LowRankNormal`.
        flow: kind of a `LogitFlow`.
    """
    config = model.config
    if config.objective == "flow":
        return flow.from_prediction(prediction, config.num_labels, model.head.flow, config.flow_steps, config.temperature)
    return normal.from_prediction(prediction, config.num_labels)
