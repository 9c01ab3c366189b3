"""``noise2map experiment``: questions whose answer takes several trainings."""

import typer

from noise2map.cli.depth_from_generated import depth_from_generated

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Experiments of several steps in one command.", rich_markup_mode=None
)


@app.callback()
def _root() -> None:
    """Experiments of several steps in one command."""


app.command("depth-from-generated")(depth_from_generated)
