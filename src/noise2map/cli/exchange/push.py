"""``noise2map push``: a model and its card to the hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    model: Annotated[str, typer.Argument(help="A folder, or a shipped checkpoint.", show_default=False)],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made where there is none.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository that only you can see.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch. [default: main]")] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence of the weights in the hub's words, e.g. mit. [default: what the card says]")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="evaluation.csv of noise2map evaluate: its scores go into the card's metadata.")
    ] = None,
) -> None:
    """Upload a model of maps or an image generator with its card, in one commit.

    Afterwards OWNER/NAME is a --model of the other commands and what from_pretrained takes, without code from the repository. Sign
    in first: `hf auth login`, or the variable HF_TOKEN. HF_ENDPOINT names another hub.
    """
    from noise2map.evaluation.card_scores import scores_for_card
    from noise2map.hub.push import push as push_model

    scores = scores_for_card(evaluation) if evaluation is not None else ()
    address = push_model(model, repository, private=private or None, revision=revision, license=license, scores=scores)
    print(f"{repository}: {address}")
