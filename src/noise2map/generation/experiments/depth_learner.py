"""A depth model of this library, trained on a set of images with depth, to ask what the set teaches."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from noise2map.guidance.depth_range import DepthRange
from noise2map.runs.files import json_values, settings_checksum, write_json
from noise2map.runs.run_directory import last_checkpoint
from noise2map.training.maps.build import make_model, make_processor
from noise2map.training.maps.data import make_transform
from noise2map.training.maps.recipe import Recipe, load_recipe
from noise2map.training.maps.trainer import MapTrainer
from noise2map.training.optimization import make_arguments, make_curve

_SCORES, _SCORES_FILE = "learnt", "scores.json"


class _OnStep(TrainerCallback):
    """Calls a function after each optimizer step."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.function()


def learner_recipe(name: str, depth_range: DepthRange, size: int, iterations: int, seed: int) -> Recipe:
    """The recipe of a depth model for images and a range of the experiment.

    Args:
        name: Recipe of a depth model, by name or file; its data are not used.
        depth_range: Metres that a predictor knows: the model's range, too.
        size: Side of the images, pixels.
        iterations: Optimizer steps.
        seed: Of weights, order and augmentation.

    Raises:
        OSError: If there is no such recipe.
        ValueError: If it is of another task, or the range has no metres.
    """
    if depth_range.codec is None:
        raise ValueError("depth without metres cannot be learnt; expected a predictor with min_depth and max_depth")
    recipe = load_recipe(name)
    if recipe.model.task != "depth":
        raise ValueError(f"recipe {name} trains {recipe.model.task}; expected a recipe of depth")
    limits = {"min_depth": depth_range.codec.min_depth, "max_depth": depth_range.codec.max_depth}
    # One decoder call scores it: images are few and small, and what differs is the set that taught it.
    train = replace(recipe.train, iterations=iterations, seed=seed, eval_every=0, eval_images=0, eval_steps=[1], sample_images=0)
    return replace(
        recipe,
        data=replace(recipe.data, size=f"{size}x{size}", crop=None, crop_scale=None, hide=None),
        model=replace(recipe.model, config={**recipe.model.config, **limits}),
        train=train,
    )


def learn_depth(
    data: Any,
    test: Any,
    recipe: Recipe,
    directory: Path,
    on_step: Callable[[], object] = lambda: None,
    *,
    use_cpu: bool | None = None,
) -> dict[str, float]:
    """Train a depth model on a set and score it on another; an interrupted run is gone on with.

    Args:
        data: Raw samples with `image`, `depth_m` (0 where unknown) and `id`.
        test: Likewise, to score on.
        recipe: Of `learner_recipe`.
        directory: Run directory; the model is left in its `final/`.
        on_step: Called after each optimizer step, and once for each step that an interrupted run had done.
        use_cpu: Train on the CPU; by default where there is no accelerator.

    Returns:
        Scores of one decoder call by name, e.g. `abs_rel`.

    Raises:
        OSError: If something cannot be written.
        ValueError: If the set has fewer images than a batch, or the loss is not finite.
    """
    kept, asked = directory / _SCORES_FILE, settings_checksum(json_values(recipe.to_dict()))
    if kept.is_file() and (before := json.loads(kept.read_text(encoding="utf-8")))["recipe"] == asked:
        for _ in range(recipe.train.iterations):  # it was done when the experiment was stopped
            on_step()
        return dict(before["scores"])
    arguments = make_arguments(recipe.train, recipe.optim, directory, use_cpu=use_cpu)
    arguments.disable_tqdm = True  # the experiment has a bar of its own
    trainer = MapTrainer(
        make_model(recipe, data),
        arguments,
        train_dataset=data,
        eval_dataset=test,
        processing_class=make_processor(recipe),
        transform=make_transform(recipe, data),
        curve=make_curve(recipe.schedule, recipe.train.iterations),
        no_decay=recipe.optim.no_decay,
        eval_steps=recipe.train.eval_steps,
        sample_images=0,
        ema_half_life_images=recipe.train.ema_half_life_images or None,
        ema_warmup_ratio=recipe.train.ema_warmup_ratio,
        callbacks=[_OnStep(on_step)],
    )
    trainer.pop_callback(PrinterCallback)
    trainer.check_training_set()
    found = last_checkpoint(directory)
    for _ in range(0 if found is None else int(found.name.rpartition("-")[2])):
        on_step()
    trainer.train(resume_from_checkpoint=found is not None)
    scores = trainer.evaluate(metric_key_prefix=_SCORES)
    trainer.export_final()
    words = {name.removeprefix(f"{_SCORES}_"): value for name, value in scores.items()}
    found = {name.removesuffix("_1"): float(value) for name, value in words.items() if name.endswith("_1")}
    write_json(kept, {"recipe": asked, "scores": found})
    for checkpoint in directory.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return found
