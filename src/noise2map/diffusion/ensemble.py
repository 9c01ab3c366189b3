"""The ensemble axis: noise of shape ``(B, R, C, h, w)``, folded once to ``(B*R, ...)`` and reduced over R only.

Each image has its own generator, so that its map does not depend on the batch it sits in.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def image_generator(seed: int, image_id: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one image: the same map for the same ``(seed, image_id)`` in any batch, order or process.

    Args:
        seed: the run's seed.
        image_id: a stable name of the image (a relative path, a frame number).
        device: device of the generator; noise drawn on the CPU is the same on every machine.
    """
    digest = hashlib.blake2b(f"{int(seed)}\0{image_id}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


def generator_list(generator: Generators, batch_size: int) -> list[torch.Generator | None]:
    """One generator for each image.

    A single generator is used for all images in turn (image 0 draws first): then a map does depend on its place in the
    batch. Pass a list for independence.

    Raises:
        ValueError: if a list has another length than the batch, or something is not a generator.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * batch_size
    generators: list[torch.Generator | None] = list(generator) if isinstance(generator, Sequence) else [generator]
    for item in generators:
        if not isinstance(item, torch.Generator):
            raise ValueError(f"generator is {item!r}; expected a torch.Generator, or a list with one for each image")
    if len(generators) != batch_size:
        raise ValueError(f"got {len(generators)} generators; expected one for each of the {batch_size} images")
    return generators


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator | None], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise ``(B, *shape)`` in float32, one generator for each of the B images.

    Noise is drawn on each generator's own device (the CPU by default) and then moved, so that a seed gives the same map on
    every device.
    """
    rows = []
    for generator in generators:
        source = generator.device if generator is not None else torch.device("cpu")
        rows.append(torch.randn(tuple(shape), generator=generator, device=source, dtype=torch.float32).to(device))
    return torch.stack(rows)


def check_noise(noise: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns ``noise`` if it is finite floating point of shape ``(B, R, C, h, w)``.

    Raises:
        ValueError: naming the shape or type that was given and the one expected.
    """
    if tuple(noise.shape) != tuple(shape):
        raise ValueError(f"noise has shape {tuple(noise.shape)}; expected (B, R, C, h, w) = {tuple(shape)}")
    if not noise.is_floating_point():
        raise ValueError(f"noise has type {noise.dtype}; expected floating point")
    if not bool(torch.isfinite(noise).all()):
        raise ValueError("noise holds NaN or infinite values; expected standard normal noise")
    return noise


def fold(x: Tensor) -> Tensor:
    """``(B, R, ...) -> (B*R, ...)``."""
    return x.flatten(0, 1)


def unfold(x: Tensor, ensemble_size: int) -> Tensor:
    """``(B*R, ...) -> (B, R, ...)``."""
    return x.unflatten(0, (-1, ensemble_size))


def entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """Entropy of class probabilities over ``dim``, divided by ``log K`` so that it lies in [0, 1]."""
    count = probabilities.shape[dim]
    value = -(torch.xlogy(probabilities, probabilities)).sum(dim)
    return (value / torch.log(torch.tensor(float(max(count, 2)), device=value.device))).clamp(0, 1)


_LEAST_LOGIT = -100.0  # below the largest: a probability of e^-100 adds nothing, and 0 times infinity is no number


def entropy_of_logits(logits: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """`entropy` of the softmax of logits, and its largest probability, without ever holding the probabilities.

    With ``z`` the logits minus the largest, ``S = sum e^z`` and ``H = log S - sum z e^z / S``: one exponential for each class.
    """
    z = (logits - logits.amax(dim, keepdim=True)).clamp_(min=_LEAST_LOGIT)
    powers = z.exp()
    total = powers.sum(dim)
    value = total.log() - (powers * z).sum(dim) / total
    return (value / math.log(max(logits.shape[dim], 2))).clamp(0, 1), total.reciprocal()


Generator = torch.Generator | list[torch.Generator] | None


def guidance_generators(generator: Generator, batch_size: int, device: torch.device) -> list[torch.Generator]:
    """One CPU generator for each image, derived from the state of the sampler's generators without drawing from them.

    The noise of sampling is therefore the same with and without guidance; and with a generator for each image, what guides an
    image depends on nothing else.

    Args:
        generator: the sampler's; None stands for the default generator of the device.
        batch_size: number of images.
        device: the device of sampling.
    """
    if isinstance(generator, Sequence):
        return [_derive(one.get_state(), 0) for one in generator]
    if generator is not None:
        state = generator.get_state()
    else:
        state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return [_derive(state, index) for index in range(batch_size)]


def _derive(state: torch.Tensor, index: int) -> torch.Generator:
    digest = hashlib.blake2b(state.cpu().numpy().tobytes(), digest_size=8, salt=index.to_bytes(8, "little"), person=b"guidance")
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
