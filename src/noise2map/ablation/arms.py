"""What is compared: the arms of each ablation, and how their maps are decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PUBLISHED = "published"
"""Name of the arm that all others are compared with: the published recipe."""


@dataclass(frozen=True)
class Arm:
    """A decoder that is trained.

    Attributes:
        name: of its runs and rows.
        label: in plots.
        recipe: the shipped recipe that it starts from, in ``decoders/``.
        changes: fields of the model's configuration that differ from the recipe's.
        has_steps: whether it is decoded in several steps; decoders without diffusion make their map in one.
    """

    name: str
    label: str
    recipe: str = "segmentation-published"
    changes: Mapping[str, Any] = field(default_factory=dict)
    has_steps: bool = True

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, order=True)
class Decoding:
    """How maps are decoded.

    Attributes:
        steps: decoder calls.
        time_difference: of the sampling grid; `None` for the checkpoint's.
    """

    steps: int
    time_difference: float | None = None

    @property
    def key(self) -> str:
        """Name in files."""
        return f"steps{self.steps}" + ("" if self.time_difference is None else f"-difference{self.time_difference:g}")


@dataclass(frozen=True)
class Ablation:
    """A question of the published study.

    Attributes:
        name: as the command takes it.
        title: of its plot.
        arms: what is trained; the published recipe is one of them.
        decodings: how each is decoded; an arm without diffusion is decoded in one step.
        x: what a curve is drawn over, with its unit; nothing where arms have no order.
        values: number of each arm, where they differ in one.
        curves: whether a curve is one of the ``"arms"`` or one number of ``"steps"``.
    """

    name: str
    title: str
    arms: Sequence[Arm]
    decodings: Sequence[Decoding] = (Decoding(1), Decoding(3))
    x: str = ""
    values: Sequence[float] = ()
    curves: str = "steps"


_MATCHED = Arm("matched", "ours", "segmentation-matched")

SINGLE_STEP = {
    name: Arm(name, label, "segmentation-nodiffusion", changes, has_steps=False)
    for name, label, changes in (
        ("no-diffusion", "map decoder, no diffusion", {}),
        ("pyramid-pooling", "pyramid pooling (UPerNet-like)", {"decoder_type": "pyramid_pooling"}),
        ("kernel-update", "kernel update (K-Net-like)", {"decoder_type": "kernel_update"}),
    )
}
"""Decoders that make their map in one step, without noise."""


def _field_arms(name: str, labels: Mapping[Any, str], base: Any) -> list[Arm]:
    """An arm for each value of a field; the base's own value is the published arm."""
    word = name.removeprefix("map_").removeprefix("decoder_").removeprefix("noise_")
    return [
        Arm(PUBLISHED, label)
        if value == base
        else Arm(f"{word}-{value:g}" if isinstance(value, float) else f"{word}-{value}", label, changes={name: value})
        for value, label in labels.items()
    ]


def make_ablations(base: Mapping[str, Any]) -> dict[str, Ablation]:
    """All ablations around a configuration.

    Args:
        base: fields of the published arm's configuration: ``map_encoding``, ``map_scale``, ``noise_schedule``, ``decoder_layers``,
            ``time_difference``.
    """
    encodings = {"class_embedding": "class embedding", "one_hot": "one-hot", "analog_bits": "analog bits"}
    scales = sorted({0.01, 0.1, 1.0, float(base["map_scale"])})
    layers = sorted({1, 2, 3, 6, 12, int(base["decoder_layers"])})  # the published values
    own = float(base["time_difference"])
    differences = sorted({0.0, 1.0, 2.0, own})

    def arms(name: str, labels: Mapping[Any, str]) -> list[Arm]:
        return _field_arms(name, labels, base[name])

    found = (
        Ablation("encoding", "Label encoding", arms("map_encoding", encodings)),
        Ablation("scale", "Scale of the map", arms("map_scale", {s: f"{s:g}" for s in scales}), x="scale", values=scales),
        Ablation("schedule", "Noise schedule", arms("noise_schedule", {"cosine": "cosine", "linear": "linear"})),
        Ablation("layers", "Decoder depth", arms("decoder_layers", {n: str(n) for n in layers}), x="layers", values=layers),
        Ablation(
            "decoder",
            "Decoders",
            [Arm(PUBLISHED, "map decoder, diffusion"), *SINGLE_STEP.values()],
            x="GFLOP of the decoder for an image",
            curves="arms",
        ),
        Ablation(
            "time-difference",
            "Time difference",
            [Arm(PUBLISHED, "published")],
            # The checkpoint's own difference is a decoding that other ablations ask for, too.
            [Decoding(3, None if one == own else one) for one in differences],
            x="time difference",
        ),
        Ablation(
            "steps",
            "Steps",
            [Arm(PUBLISHED, "published"), _MATCHED],
            [Decoding(steps) for steps in (1, 2, 3, 10)],
            x="decoder calls",
            curves="arms",
        ),
    )
    return {one.name: one for one in found}


ABLATIONS = ("encoding", "scale", "schedule", "layers", "decoder", "time-difference", "steps")
"""Names, in the order of the published tables and figure."""
