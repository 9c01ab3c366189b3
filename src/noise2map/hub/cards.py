"""Metadata of model cards: the lines between two ``---`` at the top of ``README.md``, by which the hub finds, filters and ranks.

The specification is the hub's (https://huggingface.co/docs/hub/model-cards); scores are a ``model-index`` of Papers with Code.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import TEMPLATE_MODELCARD_PATH

from noise2map.zoo import TASK_TAGS

_PLACEHOLDER = "[More Information Needed]"
_FIELD = re.compile(r"(?:- \*\*[^*]+\*\* *)?(.+)")  # "- **License:** mit": the form repeats the metadata
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DEFAULT = re.compile(r'\{\{.*?default\("(.*?)".*?\}\}')  # what the hub's template says where nobody has filled it in
_SAID_ITSELF = "This model card has been automatically generated."  # of a model pushed by transformers or diffusers

# As the hub reads it: spaces after the lines, and nothing after the last, are let through.
_HEAD = re.compile(r"\A\ufeff?\s*---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Score:
    """A score for the ``model-index``.

    Attributes:
        name: As the library calls it, e.g. ``"mIoU"``.
        value: A plain number, shares between 0 and 1.
        dataset: Name of the data.
        split: Part of it.
        steps: Decoder calls.
    """

    name: str
    value: float
    dataset: str
    split: str
    steps: int | str


def model_index(name: str, task: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Scores in the hub's form.

    Args:
        name: Of the model.
        task: ``"segmentation"``, ``"depth"``, ``"normals"`` or ``"bev"``.
        scores: Those of one dataset and number of steps are put together, in the order in which they come.

    Returns:
        The value of ``model-index``.
    """
    results: dict[tuple[str, str, int | str], list[dict[str, Any]]] = {}
    for score in scores:
        metric = {"type": score.name, "name": f"{score.name}, steps: {score.steps}", "value": round(float(score.value), 6)}
        results.setdefault((score.dataset, score.split, score.steps), []).append(metric)
    return [
        {
            "name": name,
            "results": [
                {
                    "task": {"type": TASK_TAGS[task]},
                    "dataset": {"name": dataset, "type": dataset, "split": split},
                    "metrics": metrics,
                }
                for (dataset, split, _), metrics in results.items()
            ],
        }
    ]


def read_metadata(card: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none.

    Raises:
        ValueError: If what stands there is no YAML mapping.
    """
    head = _HEAD.match(card)
    try:
        fields = yaml.safe_load(head[1]) if head else {}
    except yaml.YAMLError as error:
        raise ValueError(f"the card's metadata is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields or {}, dict):
        raise ValueError(f"the card's metadata is {type(fields).__name__}; expected lines 'name: value' between two lines '---'")
    return dict(fields or {})


def with_metadata(card: str, fields: Mapping[str, Any], replace: bool = False) -> str:
    """The card with further metadata; its own lines stay as they were written.

    Args:
        card: Markdown, with or without metadata.
        fields: What to add; None is left out.
        replace: Put new values in the place of old ones; else what the card says stays.
    """
    there = read_metadata(card)
    new = {name: value for name, value in fields.items() if value is not None and (replace or there.get(name) is None)}
    head = _HEAD.match(card)
    lines = head[1] if head else ""
    for name in new:
        lines = re.sub(rf"^{re.escape(name)}:.*\n(?:(?:[ \t]*(?:#.*)?\n)*[ -].*\n)*", "", lines, flags=re.MULTILINE)
    added = yaml.safe_dump(new, sort_keys=False, allow_unicode=True, width=10**6) if new else ""
    body = card[head.end() :] if head else "\n" + card
    return f"---\n{lines}{added}---\n{body}"


def is_unwritten(card: str) -> bool:
    """Whether a card is nothing but the hub's form to fill in, as transformers and diffusers leave it.

    A form of which one line has been filled in is a card: somebody's words are never taken away.
    """
    head = _HEAD.match(card)
    lines = {line.strip() for line in _COMMENT.sub("", card[head.end() :] if head else card).splitlines()}
    asked = {line for line in lines if (field := _FIELD.fullmatch(line)) and field[1] == _PLACEHOLDER}
    if not asked:
        return False
    try:
        known = set(map(str, read_metadata(card).values()))
    except ValueError:
        return False
    template = _DEFAULT.sub(r"\1", Path(TEMPLATE_MODELCARD_PATH).read_text(encoding="utf-8"))
    form = {line.strip() for line in _COMMENT.sub("", template).splitlines()}
    words = {line for line in lines - form - asked if not line.startswith("#") and not line.endswith(_SAID_ITSELF)}
    return all((field := _FIELD.fullmatch(line)) is not None and field[1] in known for line in words)


def plain_card(name: str, task: str, model_class: str) -> str:
    """A card for a model that has none: what it is and how it is loaded.

    Args:
        name: Repository, ``owner/name``.
        task: See `model_index`.
        model_class: Name of its class in `noise2map`.
    """
    fields = {"library_name": "transformers", "pipeline_tag": TASK_TAGS[task], "tags": ["noise2map", task]}
    processor = "Noise2MapBevProcessor" if "Bev" in model_class else "Noise2MapImageProcessor"
    text = f"""# {name.rpartition("/")[2]}

A model of maps ({task}) of the library noise2map. Nobody has described its data and scores yet.

```python
from noise2map import {model_class}, {processor}

model = {model_class}.from_pretrained("{name}").eval()
processor = {processor}.from_pretrained("{name}")
```
"""
    return with_metadata(text, fields)
