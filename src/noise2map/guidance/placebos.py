"""Placebos: gradients of the same size that cannot know the geometry of their image. Guidance has to beat them.

Whatever pushes an image off its path with some force changes its distance to real ones; only what a gradient gains over these
has anything to do with depth.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PLACEBOS = ("neighbor", "noise", "reversed")


def placebo_gradient(kind: str, gradient: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """What takes the place of a gradient.

    - `neighbor`: the gradient of another image, which guides another geometry: images change places in pairs, the first with the
      second, the third with the fourth. An image then depends on its pair, unlike under all other settings.
    - `noise`: white noise with the norm of the image's own gradient.
    - `reversed`: the image's own gradient, away from what the losses ask for.

    Args:
        kind: One of `PLACEBOS`.
        gradient: Of each image, ``(B, C, H, W)``.
        generators: One for each image, for what is drawn.

    Raises:
        ValueError: If the kind is unknown, or images cannot be paired.
    """
    if kind == "reversed":
        return -gradient
    if kind == "neighbor":
        check_pairs(len(gradient))
        return gradient.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    if kind != "noise":
        raise ValueError(f"placebo is {kind!r}; expected one of {', '.join(PLACEBOS)}")
    drawn = torch.stack([torch.randn(gradient.shape[1:], generator=one, device=one.device) for one in generators]).to(gradient)
    norms, own = (x.flatten(1).norm(dim=1)[:, None, None, None] for x in (drawn, gradient))
    return drawn * (own / norms)


def check_pairs(count: int) -> None:
    """Refuses a number of images that leaves one without a neighbor.

    Raises:
        ValueError: If it is odd.
    """
    if count % 2:
        raise ValueError(f"the placebo 'neighbor' needs pairs of images, got {count}; expected an even number")
