"""Which decodings an evaluation compares: every combination of some choices."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noise2map.models.decoding import DecodingOptions


def json_width(width: float | None) -> float | str | None:
    """The width of a smooth field for JSON, which has no infinity: then the word by which it was asked for."""
    return "inf" if width == math.inf else width


def protocol_grid(
    steps: Sequence[int | str],
    samples: Sequence[int],
    averages: Sequence[str],
    sampler: str = "ddim",
    seed: int = 0,
    samplings: Sequence[str | None] = (None,),
    smoothness: Sequence[float | None] = (None,),
    refinements: Sequence[str | None] = (None,),
    shares: Sequence[float | None] = (None,),
    thresholds: Sequence[float | None] = (None,),
) -> "list[DecodingOptions]":
    """Every combination, without the ones that differ in name only: the mean over one step is the last step.

    `"one_pass"` takes one step of one sample, whatever `steps` and `samples` say, and a `"field"` no number that finds itself; one
    step has no later ones, of which `refinements` and `shares` or `thresholds` tell, nor are those of a field refined.

    Raises:
        ValueError: If an option has no value or an unknown one.
    """
    from noise2map.models.decoding import DecodingOptions  # words are read before anything heavy is imported

    for name, values in (
        ("steps", steps),
        ("ensemble", samples),
        ("average", averages),
        ("sampling", samplings),
        ("smoothness", smoothness),
        ("refine", refinements),
        ("refine_share", shares),
        ("refine_threshold", thresholds),
    ):
        if not values:
            raise ValueError(f"{name} needs at least one value")
    grid = [
        DecodingOptions(
            num_inference_steps=1 if sampling == "one_pass" or (sampling == "field" and count == "auto") else count,
            ensemble_size=1 if sampling == "one_pass" else size,
            average="last" if count == 1 or sampling in ("field", "one_pass") else average,
            sampler=sampler,
            sampling=sampling,
            field_smoothness=width,
            refine=("all" if refine else None) if count == 1 or sampling in ("field", "one_pass") else refine,
            refine_share=None if count == 1 or sampling in ("field", "one_pass") else share,
            refine_threshold=None if count == 1 or sampling in ("field", "one_pass") else threshold,
            seed=seed,
        )
        for sampling in samplings
        for width in (smoothness if sampling == "field" else (None,))
        for count in steps
        for size in samples
        for average in averages
        for refine in refinements
        for share in (shares if refine == "uncertain" else (None,))
        for threshold in (thresholds if refine == "uncertain" else (None,))
    ]
    return list(dict.fromkeys(grid))
