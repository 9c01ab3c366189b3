"""``noise2map train generator`` and ``noise2map train depth-prior``: unconditional diffusion U-Nets, one engine."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from noise2map.cli.options import check_positive

COMMANDS = {"image": "generator", "depth": "depth-prior"}

Dataset = Annotated[Literal["freedoom", "folder", "lsun"] | None, typer.Option(help="Kind of data. [default: as the recipe says]")]

Root = Annotated[str | None, typer.Option(help="Folder of the data; a part is held out unless the recipe names data.val.")]

Set = Annotated[list[str] | None, typer.Option("--set", help="Change a field, e.g. --set optim.lr=1e-4.")]

Out = Annotated[Path | None, typer.Option(help="Run directory; default runs/<recipe name>.")]

Resume = Annotated[bool, typer.Option("--resume", help="Go on to more iterations than the run had.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained (no data needed), and stop.")]

Listing = Annotated[bool, typer.Option("--list", help="Name the shipped recipes and stop.")]


def train_generator(
    recipe: Annotated[str, typer.Argument(help="Recipe file or name of a shipped recipe.")] = "freedoom-generator-64",
    dataset: Dataset = None,
    root: Root = None,
    category: Annotated[str | None, typer.Option(help="With --dataset lsun: bedroom, church_outdoor, ...")] = None,
    out: Out = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    list_: Listing = False,
) -> None:
    """Train an unconditional image generator (DDPM U-Net) on a folder of images, LSUN or Freedoom frames.

    The run directory gets metrics.jsonl, checkpoints, drawn samples and final/, a folder that diffusers' pipelines load.
    """
    if list_:
        return _print_names("image")
    changes = [] if category is None else [f"data.category={json.dumps(category)}"]
    _train(recipe, "image", [*_data_changes(dataset, root), *changes, *(set_ or [])], out, resume, dry_run)


def train_depth_prior(
    recipe: Annotated[str, typer.Argument(help="Recipe file or name of a shipped recipe.")] = "freedoom-depth-prior",
    resolution: Annotated[int | None, typer.Option(min=8, help="Side of the depth maps in pixels, e.g. 64, 128 or 256.")] = None,
    dataset: Dataset = None,
    root: Root = None,
    depth_scale: Annotated[
        float | None, typer.Option(callback=check_positive, help="With --dataset folder: metres per unit of the 16-bit maps.")
    ] = None,
    relative: Annotated[bool, typer.Option("--relative", help="The maps hold relative depth, 65535 being 1 (far).")] = False,
    out: Out = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    list_: Listing = False,
) -> None:
    """Train a small diffusion U-Net of depth maps, the prior of depth prior guidance."""
    if list_:
        return _print_names("depth")
    changes = _data_changes(dataset, root)
    changes += [] if resolution is None else [f"data.size={resolution}"]
    if relative:
        if depth_scale is not None:
            raise ValueError("--relative depth has no unit; expected it or --depth-scale, not both")
        changes += ["model.min_depth=none", "model.max_depth=none", f"data.depth_scale={1 / 65535!r}"]
    changes += [] if depth_scale is None else [f"data.depth_scale={depth_scale}"]
    name = Path("runs") / f"{Path(recipe).stem}{'' if resolution is None else f'-{resolution}'}"
    _train(recipe, "depth", [*changes, *(set_ or [])], out or name, resume, dry_run)


def command_of(name: str) -> str:
    """The command that a shipped recipe of this kind belongs to."""
    from noise2map.training.generators.recipe import load_generator_recipe

    return COMMANDS[load_generator_recipe(name).model.target]


def _print_names(target: str) -> None:
    from noise2map.training.generators.recipe import generator_recipe_names

    print("\n".join(name for name in generator_recipe_names() if command_of(name) == COMMANDS[target]))


def _data_changes(dataset: str | None, root: str | None) -> list[str]:
    changes = [] if dataset is None else [f"data.name={dataset}"]
    if root is not None:
        has_val = (Path(root) / "train").is_dir() and (Path(root) / "val").is_dir()
        parts = (f"{root}/train", f"{root}/val") if has_val else (root, root if dataset == "lsun" else None)
        changes += [f"data.train={json.dumps(parts[0])}", f"data.val={json.dumps(parts[1])}"]  # a path is no YAML
    return changes


def _train(recipe: str, target: str, changes: list[str], out: Path | None, resume: bool, dry_run: bool) -> None:
    from noise2map.cli.launch import hide_progress_of_files
    from noise2map.runs.run_directory import check_directory
    from noise2map.training.generators.recipe import load_generator_recipe, make_generator_recipe

    loaded = load_generator_recipe(recipe, changes)
    if loaded.model.target != target:
        other = COMMANDS[loaded.model.target]
        raise ValueError(f"recipe {recipe} has model.target {loaded.model.target!r}; use 'noise2map train {other}'")
    directory = out if out is not None else Path("runs") / Path(recipe).stem
    if dry_run:
        print(yaml.safe_dump(loaded.to_dict(), sort_keys=False), end="")
        from noise2map.training.generators.build import dry_run as look

        print(f"{look(loaded)}\nruns into {directory}")
        return
    start = check_directory(directory, loaded, resume, lambda tree: make_generator_recipe(tree).to_dict())
    if start.state == "finished":
        return

    from noise2map.training.generators.build import make_generator_trainer
    from noise2map.training.running import run_training

    hide_progress_of_files()
    run_training(make_generator_trainer(loaded, directory), directory, start, loaded, recipe)
