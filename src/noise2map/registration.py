"""Makes the Auto classes and pipelines of transformers know our models without importing either.

``import noise2map`` must stay quick, so nothing is imported here: the tables in which transformers looks up a model type, a
processor class and the class of a pipeline get entries that import :mod:`noise2map.models` when they are looked up. Tables of
modules that are not loaded yet are completed at the end of their import.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MODEL_TYPES = ("noise2map", "noise2map-bev")
_MODELS = "noise2map.models"
_PIPELINES = {
    "depth-estimation": "noise2map.models.pipelines.MapDepthPipeline",
    "image-segmentation": "noise2map.models.pipelines.MapSegmentationPipeline",
}


class _OnDemand(dict):
    """Entries that users registered with a table of transformers; our models register themselves when it is first searched."""

    def __init__(self, content: dict, keys: Sequence[str] = ()) -> None:
        super().__init__(content)
        self.expected = frozenset(keys)

    def _complete(self) -> None:
        if _MODELS not in sys.modules:  # there also while it is being imported
            importlib.import_module(_MODELS)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self.expected

    def __missing__(self, key: Any) -> Any:
        if key in self.expected:
            self._complete()
            if super().__contains__(key):
                return self[key]
        raise KeyError(key)

    def values(self) -> Any:
        self._complete()
        return super().values()

    def items(self) -> Any:
        self._complete()
        return super().items()


def _complete_configurations(module: ModuleType) -> None:
    mapping = module.CONFIG_MAPPING
    mapping._extra_content = _OnDemand(mapping._extra_content, _MODEL_TYPES)


def _complete_processors(module: ModuleType) -> None:
    mapping = module.IMAGE_PROCESSOR_MAPPING
    mapping._extra_content = _OnDemand(mapping._extra_content)


def _complete_pipelines(module: ModuleType) -> None:
    for task, implementation in _PIPELINES.items():
        entry = module.SUPPORTED_TASKS.get(task)
        if entry is None:
            continue
        if isinstance(entry["impl"], str):
            entry["impl"] = implementation
        else:  # the table of transformers 5.20 holds the classes themselves
            home, _, name = implementation.rpartition(".")
            entry["impl"] = getattr(importlib.import_module(home), name)


_COMPLETIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _complete_configurations,
    "transformers.models.auto.image_processing_auto": _complete_processors,
    "transformers.pipelines": _complete_pipelines,
}


def _complete(module: ModuleType) -> None:
    """Complete the table of a module; a transformers that keeps its tables otherwise is left alone."""
    with suppress(AttributeError, TypeError):
        _COMPLETIONS[module.__name__](module)


class _AfterImport(MetaPathFinder):
    """Finds a module as without it, and completes its table when the module has run."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _COMPLETIONS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        loader = spec.loader if spec is not None else None
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        run = loader.exec_module

        def run_and_complete(module: ModuleType) -> None:
            run(module)
            if module.__name__ in _COMPLETIONS:
                _complete(module)

        loader.exec_module = run_and_complete  # type: ignore[method-assign]  # this loader serves this module
        return spec


def register() -> None:
    """Complete the tables of transformers now, or when they are imported; once."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    for name in _COMPLETIONS:
        if name in sys.modules:
            _complete(sys.modules[name])
    sys.meta_path.insert(0, _AfterImport())
