"""``noise2map train``: a run from a recipe of maps; generators, priors and depth predictors have commands of their own."""

import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from noise2map.cli import keep_freed_memory
from noise2map.cli.train_denoising import command_of, train_depth_prior, train_generator
from noise2map.cli.train_predictor import train_depth_predictor

_RECIPE = "recipe"


class _RecipeGroup(typer.core.TyperGroup):
    """What is not the name of a command is a recipe: ``noise2map train freedoom-depth-tiny``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = args and args[0] in self.commands
        return super().parse_args(ctx, args if known else [_RECIPE, *args])


app = typer.Typer(cls=_RecipeGroup, add_completion=False, rich_markup_mode=None)


@app.command(_RECIPE, hidden=True, epilog="Other networks, with their own --help: generator, depth-prior, depth-predictor.")
def train(
    recipe: Annotated[
        str, typer.Argument(help="Recipe file, name of a shipped recipe (see --list), or folder: your own images/ and maps/.")
    ] = "",
    root: Annotated[Path | None, typer.Option(help="With folder: what holds images/ and maps/, or train/ and val/.")] = None,
    task: Annotated[str, typer.Option(help="With folder: segmentation or depth.")] = "segmentation",
    depth_scale: Annotated[float, typer.Option(help="With folder: metres per unit of the depth maps.")] = 0.001,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<recipe name>.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field, e.g. --set optim.lr=1e-4.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint of the run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained (no data needed), and stop.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Name the shipped recipes and stop.")] = False,
) -> None:
    """Train a model from a recipe; the run directory gets metrics.jsonl, checkpoints, samples and final/."""
    from noise2map.training.denoising_recipe import denoising_recipe_names
    from noise2map.training.recipes import load_recipe, recipe_names

    if list_:
        others = [f"{command_of(name)} {name}" for name in denoising_recipe_names()]
        print("\n".join([*recipe_names(), *others]))
        return
    if not recipe:
        raise ValueError(f"name a recipe file or a shipped recipe: {', '.join(recipe_names())}")
    if recipe in denoising_recipe_names():
        raise ValueError(f"{recipe} is not a recipe of maps; use 'noise2map train {command_of(recipe)} {recipe}'")
    own = recipe == "folder" and not Path(recipe).is_file()
    if own != (root is not None):
        raise ValueError("your own data: noise2map train folder --root DIR --task segmentation|depth")
    if own:
        from noise2map.training.folder_recipe import folder_recipe

        loaded = folder_recipe(root or "", task, depth_scale, set_, lambda text: print(text, file=sys.stderr))
    else:
        loaded = load_recipe(recipe, set_)
    directory = out if out is not None else Path("runs") / Path(recipe).stem
    if not dry_run:
        check_directory(directory, resume)
    else:
        from noise2map.training.dry_run import dry_run as look

        print(look(loaded).text() + f"\nruns into {directory}")
        print(yaml.safe_dump(loaded.to_dict(), sort_keys=False), end="")
        return
    keep_freed_memory(loaded.train.threads)

    # Imported after the recipe has been checked: a spelling mistake is reported at once, not after seconds of imports.
    from noise2map.training.build import make_trainer
    from noise2map.training.run_directory import last_checkpoint, write_config

    trainer = make_trainer(loaded, directory)
    print(_describe(trainer, directory))
    if trainer.is_world_process_zero() and not (resume and last_checkpoint(directory)):
        write_config(directory, run_config(loaded.to_dict(), trainer.model.config.to_dict(), recipe))
    trainer.train(resume_from_checkpoint=resume and last_checkpoint(directory) is not None)
    trainer.eval_images = None
    scores = trainer.evaluate(metric_key_prefix="final")
    final = trainer.export_final()
    if own and trainer.is_world_process_zero():
        from noise2map.training.card import write_card

        write_card(trainer, final, loaded, scores)
    if trainer.is_world_process_zero():
        print(json.dumps({name: round(value, 4) for name, value in scores.items() if "_" in name}))
        print(f"model written to {final}")


app.command("generator")(train_generator)
app.command("depth-prior")(train_depth_prior)
app.command("depth-predictor")(train_depth_predictor)


def _describe(trainer: Any, directory: Path) -> str:
    """One line that says what is trained on what."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    arguments = trainer.args
    images = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return (
        f"{trainer.task}: {parameters / 1e6:.2f}M parameters, {len(trainer.train_dataset)} training and "
        f"{len(trainer.eval_dataset)} validation samples, {arguments.max_steps} steps of {images}, into {directory}"
    )


def check_directory(directory: Path, resume: bool) -> None:
    """Refuse to train into a used directory, and find out now whether it can be written."""
    from noise2map.training.run_directory import METRICS_FILE

    if (directory / METRICS_FILE).exists() and not resume:
        raise ValueError(f"{directory} holds a run already; go on with --resume, or choose another --out")
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        raise PermissionError(f"{directory} cannot be written")


def run_config(recipe: dict, model: dict, name: str) -> dict:
    """What ``config.json`` records about a run."""
    import torch
    import transformers

    import noise2map

    return {
        "recipe_name": name,
        "recipe": recipe,
        "model": model,
        "command": shlex.join(["noise2map", *sys.argv[1:]]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "noise2map": noise2map.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
