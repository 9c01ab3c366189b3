"""The rows of an evaluation of a generator: what guides their images, and in how many steps they are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from noise2map.generation.loading import prior_name
from noise2map.guidance import ConsistencyLoss, DepthGuidedPipeline, DepthPrior, GuidanceConfig, PriorLoss
from noise2map.guidance.gradient import guided_prediction
from noise2map.guidance.scheduler_step import set_timesteps
from noise2map.runs.operations import count_operations

NONE, EQUAL_COST = "none", "none, equal cost"


@dataclass(frozen=True)
class RowSetting:
    """How the images of a row are drawn.

    Attributes:
        guidance: What guides.
        steps: Sampling steps.
    """

    guidance: GuidanceConfig
    steps: int


Tables = dict[str, dict[str, RowSetting]]
"""Table (`"steps"`, `"guidance"`, `"placebos"`, `"pulls"`, `"scales"`, `"priors"`) -> name of a row -> how its images are drawn."""


def step_cost(pipe: DepthGuidedPipeline, guidance: GuidanceConfig) -> float:
    """Operations of a guided step over those of an unguided one; counted, not timed, so that it is the same everywhere.

    Args:
        pipe: The generator with what guides it.
        guidance: What guides; 1 is returned if nothing does.
    """
    bound = guidance.bound(convention=pipe.config.convention, reduction=pipe.config.reduction, pipe_parts={**pipe.components})
    if not bound.losses:
        return 1.0
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.zeros(1, pipe.unet.config.in_channels, height, width, device=pipe.device, dtype=pipe.unet.dtype)
    bound = replace(bound, placebo=None)

    def guided() -> None:
        guided_prediction(pipe.unet, pipe.depth_predictor, pipe.depth_prior, x, 0, bound, [torch.Generator().manual_seed(0)])

    with torch.no_grad():
        plain = count_operations(lambda: pipe.unet(x, 0))
    return count_operations(guided) / plain


def steps_at_cost(pipe: DepthGuidedPipeline, guidance: GuidanceConfig, steps: int) -> int:
    """Unguided steps that take as many operations as a run of so many steps, of which those in the window are guided."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    set_timesteps(scheduler, steps)
    levels = torch.logit(scheduler.alphas_cumprod.double())[scheduler.timesteps.cpu()].tolist()
    guided = sum(guidance.guides(index, level, steps, pipe.depth_predictor) for index, level in enumerate(levels))
    return round(steps + guided * (step_cost(pipe, guidance) - 1))


def setting_tables(
    options: Any, pipe: DepthGuidedPipeline, priors: Sequence[DepthPrior], real: Sequence[Sequence[float]] | None = None
) -> Tables:
    """Settings of the rows, one for each row of each table.

    Args:
        options: What is asked for, `GeneratorOptions`.
        pipe: The generator; without a depth predictor nothing is guided.
        priors: The first is that of the main table; rows of a sweep bear their names.
        real: What real images disagree by, see `ConsistencyLoss`; for the rows of `options.pulls`.

    Returns:
        `"steps"`: the unguided generator at other numbers of steps; `"guidance"`: none, DCG, DPG, both, as far as there are parts
        for them, and unguided images at the cost of the dearest; `"placebos"`; `"pulls"`: DCG that aims at the disagreement of
        real images; `"scales"` and `"priors"`: the sweeps.
    """
    prior, steps = next(iter(priors), None), options.sampling.num_inference_steps

    def guided(consistency: float, prior_scale: float = 0.0, by: DepthPrior | None = prior, **changes: Any) -> RowSetting:
        judges = () if by is None else (PriorLoss(prior_scale, prior=by),)
        losses = (ConsistencyLoss(consistency), *judges)
        return RowSetting(replace(options.guidance, losses=losses, **changes), steps)

    tables: Tables = {}
    if options.unguided_steps:
        counts = sorted({*options.unguided_steps, steps})
        tables["steps"] = {f"{count} steps": replace(guided(0.0), steps=count) for count in counts}
    tables["guidance"] = {NONE: guided(0.0)}
    if pipe.depth_predictor is None:
        return tables
    scales = options.consistency_scale, options.prior_scale
    tables["guidance"]["DCG"] = guided(scales[0])
    if prior is not None and scales[1] > 0:  # at 0 they would be the rows without it, and the cost that of a loss that does nothing
        tables["guidance"] |= {"DPG": guided(0.0, scales[1]), "both": guided(*scales)}
    name, row = list(tables["guidance"].items())[-1]
    if options.equal_cost:
        tables["guidance"][EQUAL_COST] = replace(guided(0.0), steps=steps_at_cost(pipe, row.guidance, steps))
    if options.placebos:
        changed = {f"{name}, {kind}": replace(row, guidance=replace(row.guidance, placebo=kind)) for kind in options.placebos}
        tables["placebos"] = {NONE: tables["guidance"][NONE], name: row, **changed}
    if options.pulls:
        aims = {f"DCG, {pull}": ConsistencyLoss(scales[0], real=real, pull=pull) for pull in options.pulls}
        aimed = {name: RowSetting(replace(options.guidance, losses=(loss,)), steps) for name, loss in aims.items()}
        tables["pulls"] = {NONE: tables["guidance"][NONE], "DCG": tables["guidance"]["DCG"], **aimed}
    if options.sweep_scales:
        tables["scales"] = {f"scale {scale:g}": guided(scale, scale) for scale in sorted(set(options.sweep_scales))}
    named = {prior_name(one): one for one in priors} if len(priors) > 1 else {}
    if len(named) > 1:
        tables["priors"] = {f"prior {name}": guided(*scales, one) for name, one in named.items()}
    return tables
