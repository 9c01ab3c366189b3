"""Evaluates a model under a test plan, picture by picture; the results have the form of the plain evaluation's."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from noise2map.inference.evaluation_plans import EvaluationPlan
from noise2map.inference.evaluator import Evaluation, ProtocolResult, Stopwatch, evaluate_model, make_scorer
from noise2map.inference.scoring import DepthScorer
from noise2map.inference.views import PlannedImage, ViewPlan
from noise2map.models.decoding import DecodingOptions
from noise2map.training.evaluation import task_of, true_map


@torch.no_grad()
def evaluate_with_plan(
    model: Any,
    processor: Any,
    dataset: Any,
    protocols: Sequence[DecodingOptions],
    plan: EvaluationPlan,
    batch_size: int = 8,
    seed: int = 0,
    depth_range: tuple[float, float] | None = None,
    fit_temperature: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Score a model on a data set under several protocols, looking at pictures as a plan says.

    Each view of a picture is encoded once, whatever the number of protocols. With the plain plan this is ``evaluate_model``,
    batches and all; any other goes picture by picture. The map
    that is scored has been averaged over views at the size of the truth.

    Args:
        model: A map model in evaluation mode.
        processor: Its image processor.
        dataset: Raw samples with ``labels`` or ``depth_m``.
        protocols: Settings of the dials.
        plan: How pictures are looked at.
        batch_size: Images at a time under the plain plan.
        seed: Seed of the start noise.
        depth_range: Where depth is scored, metres; the plan's or the model's own where it is not given.
        fit_temperature: Also fit the temperature of the logits (plain plan alone).
        progress: Called with the number of images just done.

    Raises:
        ValueError: As ``evaluate_model``; or if a temperature is asked of averaged probabilities.
    """
    depth_range = depth_range or plan.depth_range_m
    if plan.views == ViewPlan() and plan.farthest_m is None:
        return evaluate_model(model, processor, dataset, protocols, batch_size, seed, depth_range, fit_temperature, progress)
    if fit_temperature:
        raise ValueError("the temperature is that of the logits of whole pictures; fit it with the plain protocol")
    if not len(dataset):
        raise ValueError("the data set holds no images")
    if not protocols:
        raise ValueError("need at least one protocol")
    task = task_of(model)
    wanted = "labels" if task == "segmentation" else "depth_m"
    results = [ProtocolResult(protocol, _scorer(model, depth_range, plan)) for protocol in protocols]
    encoding, decoding = Stopwatch(model.device), [Stopwatch(model.device) for _ in results]
    ids: list[str] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        image_id = str(sample.get("id", index))
        if wanted not in sample:
            raise ValueError(f"sample {image_id!r} has no {wanted!r}, which scores for {task} need")
        ids.append(image_id)
        truth = true_map(sample, task)
        size = (int(truth.shape[0]), int(truth.shape[1]))
        seen = encoding.run(lambda image=sample["image"]: PlannedImage(model, processor, image, plan.views), 1)
        for result, watch in zip(results, decoding):
            output = watch.run(lambda p=result.protocol, s=seen, i=image_id, t=size: s.decode(replace(p, seed=seed), i, t), 1)
            try:
                result.scorer.update(output, "last", size, [index], [truth])
            except ValueError as error:
                raise ValueError(f"{result.protocol.name}, image {image_id!r}: {error}") from error
        if progress is not None:
            progress(1)
    if len(set(ids)) < len(ids):
        raise ValueError("two samples of the data set share an id")
    for result, watch in zip(results, decoding):
        result.mean_steps = sum(result.scorer.steps) / len(result.scorer.steps)
        result.encode_seconds, result.decode_seconds = encoding.seconds_per_image, watch.seconds_per_image
    return Evaluation(task, ids, results)


def _scorer(model: Any, depth_range: tuple[float, float] | None, plan: EvaluationPlan) -> Any:
    scorer = make_scorer(model, depth_range)
    if isinstance(scorer, DepthScorer) and plan.farthest_m is not None:
        scorer.model_range = (scorer.model_range[0], min(scorer.model_range[1], plan.farthest_m))
    return scorer
