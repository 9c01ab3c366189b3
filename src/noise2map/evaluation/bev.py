"""Bird's-eye-view evaluation: the published protocol by sensors, and the table of layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from noise2map.evaluation.official import BEV_SAMPLES, sensors_name
from noise2map.models.decoding import DecodingOptions
from noise2map.report.tables import text_table

_STEPS = 3


def named_protocols(config: Any) -> list[DecodingOptions]:
    """The published protocol of a model with these sensors, and the honest one: a single sample, its last step."""
    samples = BEV_SAMPLES.get(sensors_name(config), max(BEV_SAMPLES.values()))
    counts = ((samples, "steps"), (1, "last"))
    return [
        DecodingOptions(
            num_inference_steps=_STEPS, ensemble_size=count, average=average, sampler="ddim", sampling="diffusion", refine="all"
        )
        for count, average in counts
    ]


def protocol_label(protocol: DecodingOptions, config: Any) -> str:
    """``"published"``, ``"single sample"`` or nothing: what to call a setting of the dials."""
    published, single = named_protocols(config)
    return {published.name: "published", single.name: "single sample"}.get(protocol.name, "")


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
