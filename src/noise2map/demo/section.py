"""A section of the demo's page, and the shipped model that it shows."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch

from noise2map.inference.predictor import Predictor
from noise2map.report.html import Page
from noise2map.tasks import TASKS
from noise2map.zoo import shipped_models

AUTO, NONE = "auto", "none"


def open_model(name: str, task: str, device: torch.device, mark: str = "") -> Predictor | None:
    """The model that a section shows; None if there is none.

    Args:
        name: ``"auto"`` for the first one that is shipped, if any; ``"none"``; or a shipped name, folder or hub id.
        task: Name of its task.
        device: Where to.
        mark: What the name of a shipped one contains.

    Raises:
        OSError: If it is missing.
        ValueError: If it is for another task.
    """
    if name == AUTO:
        name = next((one.name for one in shipped_models() if one.task == task and mark in one.name), NONE)
    if name == NONE:
        return None
    predictor = Predictor.from_pretrained(name, device)
    if predictor.task != TASKS[task].name:
        raise ValueError(f"model {name!r} is for {predictor.task}; expected one for {task}")
    return predictor


class DemoSection(ABC):
    """Adds something to the demo's page and to its folder.

    Attributes:
        title: The heading on the page.
    """

    title: str

    @abstractmethod
    def show(self, page: Page, out: Path) -> list[str]:
        """Compute what is to be seen, add it to the page, and write the files that belong to it.

        Args:
            page: The demo's page.
            out: The demo's folder.

        Returns:
            Lines for the terminal: tables of scores, or none.

        Raises:
            OSError: If a file cannot be written.
        """
