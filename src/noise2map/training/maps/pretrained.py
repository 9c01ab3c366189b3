"""Backbones pretrained on ImageNet into a fresh model, from a hub id or a local folder of transformers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import logging

_BIAS_TABLE = re.compile(r"relative_position_bias_table$")

# Norms of the four outputs, which a classifier has not.
_OWN = re.compile(r"^hidden_states_norms\.")


def load_backbone(backbone: nn.Module, source: str) -> list[str]:
    """Copy pretrained weights into a backbone of transformers; its output norms, which no classifier has, keep theirs.

    Tables of relative positions of other windows are resized, as for the published models with windows of 12.

    Args:
        backbone: a backbone of transformers, changed in place.
        source: hub id or local folder of a model of the same kind (a classifier or a backbone).

    Returns:
        Names of the tables that were resized.

    Raises:
        OSError: if there is no such model, or no network to get it from.
        ValueError: if it is of another kind or size, or its weights cannot be read.
    """
    given = _read(type(backbone), source)
    wanted = backbone.state_dict()
    missing = [name for name in wanted if name not in given and not _OWN.match(name) and wanted[name].is_floating_point()]
    if missing:
        raise ValueError(
            f"model.backbone_from {source!r} lacks {len(missing)} weights of {type(backbone).__name__}, such as {missing[0]}"
        )
    resized = []
    for name, own in wanted.items():
        if name not in given or not own.is_floating_point():
            continue
        value = given[name]
        if value.shape != own.shape and _BIAS_TABLE.search(name) and value.shape[1:] == own.shape[1:]:
            value = resize_bias_table(value, own.shape[0])
            resized.append(name)
        if value.shape != own.shape:
            shapes = f"{tuple(value.shape)}; expected {tuple(own.shape)}"
            raise ValueError(f"model.backbone_from {source!r} has other sizes than the recipe's backbone: {name} is {shapes}")
        own.copy_(value)
    return resized


def resize_bias_table(table: Tensor, length: int) -> Tensor:
    """Table of relative positions ``((2 w - 1)^2, heads)`` for windows of another size, bicubic for each head.

    Args:
        table: the table.
        length: its new number of rows, a square.
    """
    side, new_side = round(len(table) ** 0.5), round(length**0.5)
    maps = table.T.reshape(1, -1, side, side).float()
    maps = functional.interpolate(maps, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return maps.reshape(-1, length).T.contiguous().to(table)


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@torch.no_grad()
def _read(kind: Any, source: str) -> dict[str, Tensor]:
    local = source.startswith((".", "/", "~")) or Path(source).is_dir()
    folder = str(Path(source).expanduser()) if local else source
    if local and not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"recipe field model.backbone_from is {source!r}; there is no config.json in it")
    try:
        config = kind.config_class.get_config_dict(folder)[0]
        if config.get("model_type") != kind.config_class.model_type:
            raise ValueError(
                f"model.backbone_from {source!r} is a {config.get('model_type')!r}; the recipe's backbone is a "
                f"{kind.config_class.model_type!r}"
            )
        with _quiet():  # the report of what a backbone lacks is made here, for the keys that matter
            model, info = kind.from_pretrained(folder, output_loading_info=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"model.backbone_from {source!r}: the weights cannot be read: {error}") from error
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise OSError(
            f"recipe field model.backbone_from is {source!r}, which could not be loaded from the hub ({reason}). "
            "Without a network, give the folder of a downloaded copy, or 'none' to start from random weights"
        ) from error
    invented = set(info["missing_keys"])
    return {name: value for name, value in model.state_dict().items() if name not in invented}
