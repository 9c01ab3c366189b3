"""Which decodings an evaluation compares: the command line's words, and every combination of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noise2map.models.decoding import DecodingOptions


def parse_steps(words: Sequence[str]) -> list[int | str]:
    """Step counts from `["1", "3,10", "auto"]`, without repetition, in the order given.

    Raises:
        ValueError: If a word is neither a whole number of at least 1 nor `auto`.
    """
    found: list[int | str] = []
    for word in _words(words):
        value = word if word == "auto" else _count(word, "steps", " or 'auto'")
        if value not in found:
            found.append(value)
    return found


def parse_counts(words: Sequence[str], name: str) -> list[int]:
    """Whole numbers of at least 1 from `["1", "4,8"]`, without repetition; errors as in :func:`parse_steps`."""
    return list(dict.fromkeys(_count(word, name) for word in _words(words)))


def parse_choices(words: Sequence[str], name: str, choices: Sequence[str]) -> list[str]:
    """Words from `["last,steps"]`, each one of `choices`, without repetition.

    Raises:
        ValueError: If a word is not one of them.
    """
    found = list(dict.fromkeys(_words(words)))
    for word in found:
        if word not in choices:
            raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {word!r}")
    return found


def _words(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in text.replace(",", " ").split()]


def _count(word: str, name: str, extra: str = "") -> int:
    if not (word.isascii() and word.isdecimal()) or int(word) < 1:
        raise ValueError(f"{name} must be a whole number of at least 1{extra}, got {word!r}")
    return int(word)


def protocol_grid(
    steps: Sequence[int | str], samples: Sequence[int], averages: Sequence[str], sampler: str = "ddim", seed: int = 0
) -> "list[DecodingOptions]":
    """Every combination, without the ones that differ in name only: the mean over one step is the last step.

    Raises:
        ValueError: If an option has no value or an unknown one.
    """
    from noise2map.models.decoding import DecodingOptions  # words are read before anything heavy is imported

    for name, values in (("steps", steps), ("ensemble", samples), ("average", averages)):
        if not values:
            raise ValueError(f"{name} needs at least one value")
    grid = [
        DecodingOptions(
            num_inference_steps=count,
            ensemble_size=size,
            average="last" if count == 1 else average,
            sampler=sampler,
            seed=seed,
        )
        for count in steps
        for size in samples
        for average in averages
    ]
    return list(dict.fromkeys(grid))
