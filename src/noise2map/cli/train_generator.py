"""``noise2map train generator`` and ``noise2map train depth-prior``: unconditional diffusion U-Nets, one engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

if TYPE_CHECKING:
    from noise2map.training.generators.recipe import GeneratorRecipe

COMMANDS = {"image": "generator", "depth": "depth-prior"}

Data = Annotated[str | None, typer.Option(help="Kind of data: freedoom, folder or lsun; default as in the recipe.")]

Root = Annotated[str | None, typer.Option(help="Folder of the data; a part is held out unless the recipe names data.val.")]

Set = Annotated[list[str] | None, typer.Option("--set", help="Change a field, e.g. --set optim.lr=1e-4.")]

Out = Annotated[Path | None, typer.Option(help="Run directory; default runs/<recipe name>.")]

Resume = Annotated[bool, typer.Option("--resume", help="Go on to more iterations than the run had.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained (no data needed), and stop.")]

Listing = Annotated[bool, typer.Option("--list", help="Name the shipped recipes and stop.")]


def train_generator(
    recipe: Annotated[str, typer.Argument(help="Recipe file or name of a shipped recipe.")] = "freedoom-generator-64",
    data: Data = None,
    root: Root = None,
    category: Annotated[str | None, typer.Option(help="With --data lsun: bedroom, church_outdoor, ...")] = None,
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
    changes = [] if category is None else [f"data.category={category}"]
    _train(recipe, "image", [*_data_changes(data, root), *changes, *(set_ or [])], out, resume, dry_run)


def train_depth_prior(
    recipe: Annotated[str, typer.Argument(help="Recipe file or name of a shipped recipe.")] = "freedoom-depth-prior",
    resolution: Annotated[int | None, typer.Option(help="Side of the depth maps in pixels, e.g. 64, 128 or 256.")] = None,
    data: Data = None,
    root: Root = None,
    depth_scale: Annotated[float | None, typer.Option(help="With --data folder: metres per unit of the 16-bit maps.")] = None,
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
    changes = _data_changes(data, root)
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


def _data_changes(data: str | None, root: str | None) -> list[str]:
    changes = [] if data is None else [f"data.name={data}"]
    if root is not None:
        has_val = (Path(root) / "train").is_dir() and (Path(root) / "val").is_dir()
        parts = (f"{root}/train", f"{root}/val") if has_val else (root, root if data == "lsun" else "none")
        changes += [f"data.train={parts[0]}", f"data.val={parts[1]}"]
    return changes


def _train(recipe: str, target: str, changes: list[str], out: Path | None, resume: bool, dry_run: bool) -> None:
    from noise2map.cli.launch import hide_progress_of_files, keep_freed_memory
    from noise2map.runs.run_directory import check_directory, run_config
    from noise2map.training.generators.recipe import load_generator_recipe, make_generator_recipe

    loaded = load_generator_recipe(recipe, changes)
    if loaded.model.target != target:
        other = COMMANDS[loaded.model.target]
        raise ValueError(f"recipe {recipe} has model.target {loaded.model.target!r}; use 'noise2map train {other}'")
    directory = out if out is not None else Path("runs") / Path(recipe).stem
    if dry_run:
        print(yaml.safe_dump(loaded.to_dict(), sort_keys=False), end="")
        print(_look(loaded) + f"\nruns into {directory}")
        return
    start = check_directory(directory, loaded, resume, lambda tree: make_generator_recipe(tree).to_dict())
    if start.state == "finished":
        return
    keep_freed_memory(loaded.train.threads)

    from noise2map.training.generators.build import make_generator_trainer
    from noise2map.training.running import run_training

    hide_progress_of_files()
    trainer = make_generator_trainer(loaded, directory)
    print(_describe(trainer, target, directory))
    run_training(trainer, directory, start, run_config(loaded.to_dict(), trainer.model.config.to_dict(), recipe))


def _describe(trainer: Any, target: str, directory: Path) -> str:
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    arguments = trainer.args
    pictures = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    size = trainer.train_dataset.size
    return (
        f"{target} at {size}x{size}: {parameters:.2f}M parameters, {len(trainer.train_dataset)} training and "
        f"{len(trainer.eval_dataset)} held-out pictures, {arguments.max_steps} steps of {pictures}, into {directory}"
    )


def _look(recipe: "GeneratorRecipe") -> str:
    """What the recipe would train: parameters, decoder blocks, arithmetic."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from noise2map.guidance import decoder_blocks
    from noise2map.training.generators.build import make_generator_model

    if recipe.model.init_from is not None:
        return f"starts from {recipe.model.init_from}"
    unet = make_generator_model(recipe).unet.to("meta")
    picture = torch.empty(1, unet.config.in_channels, recipe.data.size, recipe.data.size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(picture, torch.zeros(1, dtype=torch.long, device="meta"))
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    step = 3 * counter.get_total_flops() * recipe.train.batch_size * recipe.train.accumulation
    return (
        f"{parameters / 1e6:.2f}M parameters ({parameters * 2 / 1e6:.1f} MB in fp16), {len(decoder_blocks(unet))} decoder blocks; "
        f"{counter.get_total_flops() / 1e9:.2f} GFLOP a forward pass of one picture, {step / 1e12:.2f} TFLOP a training step"
    )
