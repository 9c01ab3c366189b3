"""Several decoders on one image encoder, as one model: a deep ensemble that encodes once (Lakshminarayanan et al. 2017)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from noise2map.diffusion.ensemble import fold

# Methods of a module that change it and give it back.
_OF_ALL = ("eval", "train", "float", "double", "half", "bfloat16", "cpu", "cuda", "requires_grad_")


class DecoderEnsemble:
    """Behaves like its first member, but decodes with all of them.

    Probabilities (depths, directions) are averaged over members, and their disagreement is an uncertainty, as that of samples is;
    predicted scales follow the law of total variance.

    Args:
        members: map models of one class, with equal encoders.

    Raises:
        ValueError: if there is but one, or they differ in type, classes or encoder: features of one would mean nothing to another;
            or if their intervals are calibrated differently: nobody fitted those of the mean.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble of {len(members)} decoder; expected at least 2")
        first = members[0]
        for number, member in enumerate(members[1:], start=2):
            if type(member) is not type(first):
                raise ValueError(f"member {number} is a {type(member).__name__}; expected a {type(first).__name__}, like the first")
            if member.config.id2label != first.config.id2label:
                raise ValueError(
                    f"member {number} has other classes than the first, or another order of them; expected equal id2label"
                )
            own, other = first.encoder.state_dict(), member.encoder.state_dict()
            if own.keys() != other.keys() or not all(torch.equal(value, other[name]) for name, value in own.items()):
                raise ValueError(f"member {number} has another encoder than the first; expected decoders trained on one encoder")
        self.members = list(members)
        calibrations = [member.calibration for member in members]
        differing = [number for number, one in enumerate(calibrations, start=1) if one != calibrations[0]]
        if differing and any(one is not None and one.radii for one in calibrations):
            raise ValueError(
                f"member {differing[0]} is calibrated otherwise than the first, and its intervals are; expected members of one "
                "calibration, or of none"
            )
        # What a member states is corrected by its own calibration; intervals and sets of the mean are one's that all share.
        self.calibration = None if differing else calibrations[0]

    def __getattr__(self, name: str) -> Any:
        if name == "members":  # not set yet: copying asks before
            raise AttributeError(name)
        if name in _OF_ALL:
            return partial(self._call_all, name)
        return getattr(self.members[0], name)

    def to(self, *args: Any, **kwargs: Any) -> "DecoderEnsemble":
        """Moves all members, as `torch.nn.Module.to`."""
        return self._call_all("to", *args, **kwargs)

    def _call_all(self, method: str, *args: Any, **kwargs: Any) -> "DecoderEnsemble":
        for member in self.members:
            getattr(member, method)(*args, **kwargs)
        return self

    def decode_map(self, features: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As `MapModel.decode_map`, with every member in turn.

        Args:
            features: of the common encoder, ``(B, C, h, w)``.
            *args: of `MapModel.decode_map`.
            **kwargs: likewise; generators go on from member to member.

        Returns:
            The output of the members' mean. ``samples`` ``(B, M R, K, h, w)`` are those of the members, one after the other;
            ``num_steps`` counts the calls of all.
        """
        outputs = [member.decode_map(features, *args, **kwargs) for member in self.members]
        first = self.members[0]
        parts = torch.stack([member.prediction_to_average(out) for member, out in zip(self.members, outputs)], 1)
        aggregator = first.make_aggregator(len(features), len(outputs), "steps")
        aggregator.update(fold(parts), torch.ones(len(features), dtype=torch.bool))
        prediction, kinds = aggregator.result()
        samples = [out.samples for out in outputs if out.samples is not None]
        return first.make_output(
            prediction,
            log_probabilities=True,
            uncertainty=kinds.get(first.config.uncertainty or first.default_uncertainty),
            uncertainties=kinds,
            num_steps=torch.stack([out.num_steps for out in outputs]).sum(0),
            samples=torch.cat(samples, 1) if samples else None,
            calibration=self.calibration,
        )
