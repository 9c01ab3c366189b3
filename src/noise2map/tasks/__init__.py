"""Tasks: what depends on the kind of map outside the network, one object for each.

A task's module is imported when the task is asked for: names can be checked before torch and transformers are imported.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noise2map.tasks.base import Task

# Name: module, class, and whether its maps are of images (`Task.of_images`).
_TASKS = {
    "segmentation": ("noise2map.tasks.segmentation", "SegmentationTask", True),
    "depth": ("noise2map.tasks.depth", "DepthTask", True),
    "normals": ("noise2map.tasks.normals", "NormalsTask", True),
    "bev": ("noise2map.tasks.bev", "BevTask", False),
}

IMAGE_TASKS = tuple(name for name, (_, _, of_images) in _TASKS.items() if of_images)


class _Tasks(Mapping[str, "Task"]):
    """Name to task, each made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Task] = {}

    def __getitem__(self, name: str) -> "Task":
        if name not in self._made:
            module, kind, _ = _TASKS[name]
            self._made[name] = getattr(importlib.import_module(module), kind)()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in _TASKS  # the mixin's would make the task, which imports torch

    def __iter__(self) -> Iterator[str]:
        return iter(_TASKS)

    def __len__(self) -> int:
        return len(_TASKS)


TASKS: Mapping[str, "Task"] = _Tasks()


def get_task(name: str) -> "Task":
    """The task of a name.

    Raises:
        ValueError: If there is none, naming those that there are.
    """
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


def task_of(model: Any) -> "Task":
    """The task of a model, which its class attribute ``task`` names.

    Raises:
        ValueError: If the model names none.
    """
    name = getattr(model, "task", None)
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"{type(model).__name__} is not a map model: its task is {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


__all__ = ["IMAGE_TASKS", "TASKS", "get_task", "task_of"]
