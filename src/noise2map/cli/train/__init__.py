"""``noise2map train``: a run from a recipe of maps; generators, priors and depth predictors have commands of their own."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from noise2map.cli.launch import hide_progress_of_files
from noise2map.cli.options import CommandGroup, Group, ImageTask, check_positive
from noise2map.cli.train.depth_predictor import train_depth_predictor
from noise2map.cli.train.encoder import train_encoder
from noise2map.cli.train.generator import DryRun, Listing, Out, Resume, Set, command_of, train_depth_prior, train_generator
from noise2map.runs.run_directory import check_directory

_RECIPE = "recipe"


class _RecipeGroup(Group):
    """Command group that takes any other name for a recipe: ``noise2map train freedoom-depth-tiny``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = args and args[0] in self.commands
        return super().parse_args(ctx, args if known else [_RECIPE, *args])


app = CommandGroup("Train a model from a recipe, a generator, or parts of its guidance.", cls=_RecipeGroup)


@app.command(_RECIPE, hidden=True, epilog="Other networks, each with --help: encoder, generator, depth-prior, depth-predictor.")
def train(
    recipe: Annotated[
        str, typer.Argument(help="Recipe file, name of a shipped recipe (see --list), or folder: your own images/ and maps/.")
    ] = "",
    root: Annotated[Path | None, typer.Option(help="With folder: what holds images/ and maps/, or train/ and val/.")] = None,
    task: Annotated[ImageTask | None, typer.Option(help="With folder: what the maps are. [default: segmentation]")] = None,
    depth_scale: Annotated[
        float | None,
        typer.Option(callback=check_positive, help="With folder: metres per unit of the depth maps. [default: 0.001]"),
    ] = None,
    out: Out = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    list_: Listing = False,
) -> None:
    """Train a model from a recipe; the run directory gets metrics.jsonl, checkpoints, samples and final/.

    The same command goes on with a run that was interrupted, and does nothing where it is finished.
    """
    from noise2map.training.encoders.recipe import encoder_recipe_names
    from noise2map.training.generators.recipe import generator_recipe_names
    from noise2map.training.maps.recipe import load_recipe, make_recipe
    from noise2map.training.recipe_files import recipe_names

    others = dict.fromkeys(encoder_recipe_names(), "encoder") | {name: command_of(name) for name in generator_recipe_names()}
    if list_:
        print("\n".join([*recipe_names(), *(f"{command} {name}" for name, command in others.items())]))
        return
    if not recipe:
        raise ValueError(f"name a recipe file or a shipped recipe: {', '.join(recipe_names())}")
    if recipe in others:
        raise ValueError(f"{recipe} is not a recipe of maps; use 'noise2map train {others[recipe]} {recipe}'")
    own = recipe == "folder" and not Path(recipe).is_file()
    if own != (root is not None):
        raise ValueError("your own data: noise2map train folder --root DIR --task segmentation|depth|normals")
    if not own and (task is not None or depth_scale is not None):
        raise ValueError(
            "--task and --depth-scale are of your own data (folder); a recipe says both itself: --set data.depth_scale=X"
        )
    if own:
        from noise2map.training.maps.folder_recipe import folder_recipe

        loaded = folder_recipe(root or "", task or "segmentation", 0.001 if depth_scale is None else depth_scale, set_)
    else:
        loaded = load_recipe(recipe, set_)
    directory = out if out is not None else Path("runs") / Path(recipe).stem
    if dry_run:
        from noise2map.training.maps.dry_run import dry_run as look

        print(yaml.safe_dump(loaded.to_dict(), sort_keys=False), end="")
        print(look(loaded).text() + f"\nruns into {directory}")
        return
    start = check_directory(directory, loaded, resume, lambda tree: make_recipe(tree).to_dict())
    if start.state == "finished":
        return

    # Imported after the recipe has been checked: a spelling mistake is reported at once, not after seconds of imports.
    from noise2map.training.maps.build import make_trainer
    from noise2map.training.maps.card import write_card
    from noise2map.training.maps.data import recorded_split
    from noise2map.training.running import run_training

    hide_progress_of_files()
    trainer = make_trainer(loaded, directory)

    def write_card_of(final: Path, scores: Any) -> None:
        write_card(trainer, final, loaded, scores)

    run_training(
        trainer,
        directory,
        start,
        loaded,
        recipe,
        score_all=True,
        split=recorded_split(trainer.train_dataset, trainer.eval_dataset),
        write_card=write_card_of if own else None,
    )


app.command("encoder")(train_encoder)

app.command("generator")(train_generator)

app.command("depth-prior")(train_depth_prior)

app.command("depth-predictor")(train_depth_predictor)
