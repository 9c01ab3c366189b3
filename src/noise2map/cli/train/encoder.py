"""``noise2map train encoder``: an image encoder for several tasks at once, on which decoders are trained later."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from noise2map.cli.train.generator import Listing, Out, Resume, Set


def train_encoder(
    recipe: Annotated[str, typer.Argument(help="Recipe file or name of a shipped recipe.")] = "freedoom-encoder-tiny",
    out: Out = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the whole recipe (no data needed), and stop.")] = False,
    list_: Listing = False,
) -> None:
    """Train an image encoder on the classes, the depth and the normals of Freedoom frames together.

    Recipes of maps start from it with model.encoder_from=RUN/final.
    """
    from noise2map.cli.launch import hide_progress_of_files
    from noise2map.runs.run_directory import check_directory
    from noise2map.training.encoders.recipe import encoder_recipe_names, load_encoder_recipe, make_encoder_recipe

    if list_:
        print("\n".join(encoder_recipe_names()))
        return
    loaded = load_encoder_recipe(recipe, set_)
    directory = out if out is not None else Path("runs") / Path(recipe).stem
    if dry_run:
        print(f"{yaml.safe_dump(loaded.to_dict(), sort_keys=False)}runs into {directory}")
        return
    start = check_directory(directory, loaded, resume, lambda tree: make_encoder_recipe(tree).to_dict())
    if start.state == "finished":
        return

    from noise2map.training.encoders.build import make_encoder_trainer
    from noise2map.training.running import run_training

    hide_progress_of_files()
    run_training(make_encoder_trainer(loaded, directory), directory, start, loaded, recipe)
