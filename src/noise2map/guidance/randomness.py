"""Randomness of guidance, kept apart from that of sampling."""

import hashlib
from collections.abc import Sequence

import torch

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
