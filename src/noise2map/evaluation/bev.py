"""Evaluates bird's-eye-view models: each sample is encoded once, its map decoded under every protocol."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import send_to_device

from noise2map.evaluation.evaluate import Evaluation, ProtocolResult, Stopwatch
from noise2map.evaluation.official import BEV_SAMPLES, sensors_name
from noise2map.models.decoding import DecodingOptions
from noise2map.report.tables import text_table
from noise2map.tasks.bev import BevScorer

_STEPS = 3


def named_protocols(config: Any) -> list[DecodingOptions]:
    """The published protocol of a model with these sensors, and the honest one: a single sample, its last step."""
    samples = BEV_SAMPLES.get(sensors_name(config), max(BEV_SAMPLES.values()))
    counts = ((samples, "steps"), (1, "last"))
    return [
        DecodingOptions(num_inference_steps=_STEPS, ensemble_size=count, average=average, sampler="ddim")
        for count, average in counts
    ]


def protocol_label(protocol: DecodingOptions, config: Any) -> str:
    """``"published"``, ``"single sample"`` or nothing: what to call a setting of the dials."""
    published, single = named_protocols(config)
    return {published.name: "published", single.name: "single sample"}.get(protocol.name, "")


@torch.no_grad()
def evaluate_bev(
    model: Any,
    processor: Any,
    dataset: Any,
    protocols: Sequence[DecodingOptions],
    batch_size: int = 4,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Score a model on a data set under several protocols.

    The noise of a sample follows from `(seed, id)`: scores do not depend on the batch size, and protocols and models are
    compared on the same noise.

    Args:
        model: A bird's-eye-view model in evaluation mode.
        processor: Its processor.
        dataset: Raw samples with `labels`.
        protocols: Settings of the dials.
        batch_size: Samples at a time.
        seed: Seed of the start noise.
        progress: Called with the number of samples just done.

    Raises:
        ValueError: If there is no sample or no protocol, a sample has no labels, two samples share an id, or the model's
            output is not finite.
    """
    if not len(dataset):
        raise ValueError("the data set holds no samples")
    if not protocols:
        raise ValueError("need at least one protocol")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    device = torch.device("cpu") if model.device.type == "mps" else model.device
    results = [ProtocolResult(protocol, BevScorer(model.config.id2label, device)) for protocol in protocols]
    encoding, decoding = Stopwatch(model.device), [Stopwatch(model.device) for _ in results]
    ids: list[str] = []
    for start in range(0, len(dataset), batch_size):
        indices = list(range(start, min(start + batch_size, len(dataset))))
        samples = [dataset[index] for index in indices]
        batch = _inputs(processor, samples)
        labels = batch.pop("labels")
        names = [str(sample["id"]) for sample in samples]
        if set(names) & set(ids) or len(set(names)) < len(names):
            raise ValueError(f"two samples of the data set share an id, near {names[0]!r}")
        ids += names
        inputs = send_to_device(batch, model.device)
        features = encoding.run(lambda inputs=inputs: model.encode_sensors(**inputs), len(names))
        for result, clock in zip(results, decoding):
            output = clock.run(lambda p=result.protocol, f=features, n=names: replace(p, seed=seed).decode(model, f, n), len(names))
            try:
                result.scorer.update(output, result.protocol.average, (0, 0), indices, list(labels))
            except ValueError as error:
                raise ValueError(f"{result.protocol.name}, sample {names[0]!r} or a neighbour: {error}") from error
        if progress is not None:
            progress(len(names))
    for result, clock in zip(results, decoding):
        result.mean_steps = sum(result.scorer.steps) / len(result.scorer.steps)
        result.encode_seconds, result.decode_seconds = encoding.seconds_per_image, clock.seconds_per_image
    return Evaluation("bev", ids, results)


def _inputs(processor: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    for sample in samples:
        if "labels" not in sample:
            raise ValueError(f"sample {sample.get('id', '?')!r} has no 'labels', which scores need")
    return dict(processor(samples))


def layer_table(extras: Sequence[Mapping[str, Any]]) -> str:
    """IoU of each layer by protocol as aligned text, in percent: the best threshold's, and that of 0.5."""
    shown = []
    for entry in extras:
        for layer, scores in entry.get("layers", {}).items():
            found = next((row for row in shown if row["layer"] == layer and row["model"] == entry["model"]), None)
            if found is None:
                found = {"model": entry["model"], "layer": layer}
                shown.append(found)
            title = entry.get("named") or entry["protocol"]
            found[f"IoU_max % ({title})"] = 100 * scores["IoU_max"]
            found[f"IoU_50 % ({title})"] = 100 * scores["IoU_50"]
    if len({row["model"] for row in shown}) == 1:
        shown = [{name: value for name, value in row.items() if name != "model"} for row in shown]
    return text_table(shown)
