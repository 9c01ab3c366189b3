"""What an official checkpoint tells beside its weights: the training framework stores the configuration as text and the classes."""

import re
from typing import Any

_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"


def settings_from_meta(content: Any, task: str, num_labels: int | None = None) -> dict[str, Any]:
    """Fields of `Noise2MapConfig` that shapes do not tell, as far as ``content["meta"]`` does; the text is searched, never run.

    Args:
        content: a checkpoint as it was read; one without ``meta`` tells nothing.
        task: ``"segmentation"``, ``"depth"`` or ``"bev"`` (of which nothing is taken).
        num_labels: classes of the model (segmentation); names and colours count where there are as many.
    """
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict) or task not in ("segmentation", "depth"):
        return {}
    text = meta.get("config")
    found = _from_text(text, task) if isinstance(text, str) else {}
    return found | (_classes(meta, num_labels) if task == "segmentation" else {})


def _from_text(text: str, task: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if re.search(r"\btype=['\"]SelfAlignedDDP['\"]", text):
        found["self_aligned"] = True
    steps = re.search(r"\btimesteps=(\d+)\b", text)
    if steps:
        found["num_inference_steps"] = int(steps[1])
    scale = re.search(rf"\bbit_scale={_NUMBER}", text)
    if scale:
        found["map_scale"] = float(scale[1])
    if task == "segmentation":
        accumulation = re.search(r"\baccumulation=(True|False)\b", text)
        if accumulation:
            found["average"] = "steps" if accumulation[1] == "True" else "last"
    else:
        # The model, its head and the data sets each have a range: where they differ, only the user knows.
        for name in ("min_depth", "max_depth"):
            values = {float(value) for value in re.findall(rf"\b{name}={_NUMBER}", text)}
            if len(values) == 1:
                found[name] = values.pop()
    return found


def _classes(meta: dict[str, Any], num_labels: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names, colours = meta.get("CLASSES"), meta.get("PALETTE")
    if isinstance(names, list | tuple) and len(names) == num_labels and all(isinstance(name, str) for name in names):
        found["id2label"] = {index: name.strip() for index, name in enumerate(names)}
    if isinstance(colours, list | tuple) and len(colours) == num_labels and all(_is_colour(colour) for colour in colours):
        found["palette"] = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours]
    return found


def _is_colour(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else ()
    return len(parts) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in parts)
