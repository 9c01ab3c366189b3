"""Documentation of a trained model: a model card and a panel of predictions beside the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noise2map.data.subsets import evenly_spaced
from noise2map.hub.cards import Score, model_index, with_metadata
from noise2map.runs.files import write_image, write_text
from noise2map.tasks import get_task
from noise2map.training.maps.recipe import Recipe
from noise2map.training.maps.samples import sample_panel
from noise2map.training.recipe_sections import world_size

CARD_FILE = "README.md"

PANEL_FILE = "predictions.png"

_PANEL_ROWS = 6


def write_card(trainer: Any, final: Path, recipe: Recipe, scores: Mapping[str, float]) -> list[Path]:
    """Write ``README.md`` and ``predictions.png`` into the folder of the exported model.

    Args:
        trainer: the trainer that has trained it; its averaged weights draw the panel.
        final: folder of the exported model.
        recipe: what was trained.
        scores: of the last evaluation, e.g. ``final_mIoU_3``.

    Returns:
        The files written.
    """
    dataset = trainer.eval_dataset
    chosen = [dataset[index] for index in evenly_spaced(len(dataset), _PANEL_ROWS)]
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    with trainer.averaged_weights():
        palette = getattr(dataset, "palette", None)
        image = sample_panel(model, trainer.processing_class, chosen, trainer.eval_steps, trainer.args.seed, palette)
    panel = final / PANEL_FILE
    write_image(panel, image)
    card = final / CARD_FILE
    write_text(card, card_text(recipe, scores, len(trainer.train_dataset), len(dataset), trainer.eval_steps))
    return [card, panel]


def card_text(recipe: Recipe, scores: Mapping[str, float], train_count: int, val_count: int, steps: Any) -> str:
    """The card in Markdown.

    Args:
        recipe: what was trained.
        scores: e.g. ``final_mIoU_3``.
        train_count: images trained on.
        val_count: images scored.
        steps: numbers of decoder calls that were scored.
    """
    task = get_task(recipe.model.task)
    names = [name for name in task.card_scores if f"final_{name}_{steps[0]}" in scores]
    rows = [f"| {count} | " + " | ".join(f"{scores[f'final_{name}_{count}']:.4f}" for name in names) + " |" for count in steps]
    batch = recipe.train.samples_per_step(world_size())
    classes = f"\nClasses: {', '.join(recipe.data.class_names)}.\n" if recipe.data.class_names else ""
    found = [
        Score(name, scores[f"final_{name}_{count}"], "held-out images", "validation", count) for count in steps for name in names
    ]
    fields = {
        "library_name": "transformers",
        "pipeline_tag": task.pipeline_tag,
        "tags": ["noise2map", task.name],
        "model-index": model_index(recipe.model.task, task.name, found),
    }
    return with_metadata(
        f"""# A noise2map model for {task}

Trained for {recipe.train.iterations} steps of {batch} on {train_count} pairs of image and map, at {recipe.data.size} pixels.
{classes}
Scores on {val_count} images that were not trained on, by decoder calls (last step, one sample):

| steps | {" | ".join(names)} |
|---|{"---|" * len(names)}
{chr(10).join(rows)}

![image, truth, prediction by steps, uncertainty]({PANEL_FILE})

Few images make uncertain scores: `noise2map evaluate --model FOLDER --dataset folder --root YOUR_IMAGES` gives intervals on the
images that were held out (`data_split.json`).

```python
from noise2map import {task.model_class.__name__}, Noise2MapImageProcessor

model = {task.model_class.__name__}.from_pretrained("path/to/this/folder")
processor = Noise2MapImageProcessor.from_pretrained("path/to/this/folder")
```
""",
        fields,
    )
