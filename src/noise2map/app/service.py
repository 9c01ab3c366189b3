"""What the page can ask for, and its answers in types of JSON; knows nothing of HTTP."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from noise2map.app import cards
from noise2map.app.drawing import run_drawing
from noise2map.app.files import Files, map_files
from noise2map.app.jobs import Job, JobQueue
from noise2map.app.limits import LIMITS, MEBI, Limits
from noise2map.app.maps import MapRequest, run_map
from noise2map.app.pixel import PixelReport, report_pixel
from noise2map.app.places import PlaceModel, run_place, thumbnail_of
from noise2map.app.store import Store
from noise2map.app.uploads import read_upload
from noise2map.data.freedoom import load_samples
from noise2map.demo.guidance import open_generator
from noise2map.inference.loading import pick_device
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import SAMPLERS, PredictionOptions
from noise2map.report.html import data_uri
from noise2map.runs.files import content_checksum, encode_image
from noise2map.tasks import TASKS
from noise2map.zoo import available, available_generators, bare_name, label_of, task_of_folder, zoo_path

logger = logging.getLogger(__name__)

PLACES, DRAWING, COMPLETION = "places", "drawing", "completion"
_SAMPLES = 12
_KEPT_IMAGES = 64
_SHOWN = (680, 680)
_FORGOTTEN = "This result is not kept any more; run it again."


@dataclass
class Kept:
    """A result with its files, for clicks and downloads."""

    files: Files
    report: Callable[[int, int], PixelReport] | None = None


class AppService:
    """The models of the app, the queue of requests, and what was found.

    Args:
        models: Shipped names, folders or hub ids that come before what is shipped.
        device: Where to, as of `pick_device`.
        limits: What may be asked for.
        shipped: Also offer what is shipped.

    Raises:
        OSError: If a model is missing.
        ValueError: If a model cannot be read.
    """

    def __init__(self, models: Sequence[str] = (), device: str = "auto", limits: Limits = LIMITS, *, shipped: bool = True) -> None:
        self.limits, self._device = limits, pick_device(device)
        self._sources = _labelled(models, (*available(), *available_generators()) if shipped else ())
        self._kinds = {label: self._kind(name) for label, name in self._sources.items()}
        self._predictors = {
            label: Predictor.from_pretrained(self._sources[label], self._device)
            for label, kind in self._kinds.items()
            if kind not in (PLACES, DRAWING)
        }
        self._loaded: dict[str, Any] = {}
        self._places: list[dict[str, Any]] | None = None
        self._opening, self._listing = threading.Lock(), threading.Lock()
        self._images: Store[tuple[Image.Image, str]] = Store(_KEPT_IMAGES, 256 * MEBI)
        self._results: Store[Kept] = Store(limits.kept, limits.kept_bytes)
        self._drawing_files = threading.Semaphore(2)
        self.queue = JobQueue(limits.waiting)

    @staticmethod
    def _kind(name: str) -> str:
        """What loads a model: places, drawing, or maps."""
        shipped = bare_name(name) in (*available(), *available_generators())
        folder = zoo_path(name) if shipped and not Path(name).is_dir() else Path(name).expanduser()
        task = task_of_folder(folder) if any((folder / one).is_file() for one in ("config.json", "model_index.json")) else ""
        return DRAWING if task == "generation" else PLACES if task in TASKS and not TASKS[task].of_images else "maps"

    # ---- what there is -------------------------------------------------------------------------------------------------

    @cached_property
    def _samples(self) -> dict[str, int]:
        stride = max(len(self._frames) // _SAMPLES, 1)
        return {f"frame-{place}": place for place in range(0, len(self._frames), stride)}

    @cached_property
    def _frames(self) -> Any:
        return load_samples("test", "image")

    @cached_property
    def state(self) -> dict[str, Any]:
        """Tabs with their models, the sample frames and places, and the limits."""
        tabs: dict[str, dict[str, Any]] = {}
        order = [*(task.name for task in TASKS.values()), COMPLETION]
        for label, predictor in self._predictors.items():
            tab = COMPLETION if COMPLETION in label and predictor.has_classes else predictor.task
            entry = tabs.setdefault(tab, {"id": tab, "title": tab.capitalize(), "kind": "map", "models": []})
            entry["models"].append(_described(label, predictor))
        found = sorted(tabs.values(), key=lambda one: order.index(one["id"]))
        for kind, title in ((PLACES, "Bird's-eye view"), (DRAWING, "Guided generation")):
            names = [label for label, one in self._kinds.items() if one == kind]
            if names:
                models = [{"name": name} for name in reversed(names)]  # of the shipped ones that with LiDAR first
                found.append({"id": kind, "title": title, "kind": kind, "models": models})
        limits = {name: getattr(self.limits, name) for name in ("upload_bytes", "calls", "drawing_steps")}
        return {"tabs": found, "samples": [self._described_sample(name) for name in self._samples], "limits": limits}

    def _described_sample(self, name: str) -> dict[str, Any]:
        sample = self._frames[self._samples[name]]
        fov = 2 * math.degrees(math.atan(sample["image"].width / 2 / float(sample["intrinsics"][0])))
        return {"name": name, "title": str(sample.get("location", name)), "fov_deg": round(fov, 1)}

    def sample_png(self, name: str) -> bytes:
        """A shipped frame.

        Raises:
            KeyError: If there is none of that name.
        """
        return encode_image(self._frames[self._samples[name]]["image"])

    def places(self) -> list[dict[str, Any]]:
        """The shipped places: number, title, view ahead; none where no model of them is offered.

        Raises:
            ImportError: If what draws their maps is not installed.
        """
        if PLACES not in self._kinds.values():
            return []
        with self._listing:
            if self._places is None:
                labels = [name for name, kind in self._kinds.items() if kind == PLACES]
                dataset = self._open(labels[0], lambda name: PlaceModel.load(name, self._device)).dataset
                samples = [dataset[index] for index in range(len(dataset))]
                self._places = [
                    {"place": place, "title": str(one["id"]), "view": thumbnail_of(one)}
                    for place, one in enumerate(samples)
                    if "images" in one
                ]
            return self._places

    def _open(self, label: str, load: Callable[[str], Any]) -> Any:
        with self._opening:
            if label not in self._loaded:
                self._loaded[label] = load(self._sources[label])
            return self._loaded[label]

    # ---- what is asked for ---------------------------------------------------------------------------------------------

    def upload(self, content: bytes) -> dict[str, Any]:
        """Keeps an image for a while; its `view` is what a browser can show, which knows neither TIFF nor PPM.

        Raises:
            ValueError: A sentence, if it is none.
        """
        image = read_upload(content, self.limits)
        token = self._images.put((image, content_checksum([content])), image.width * image.height * 3)
        shown = image.copy()
        shown.thumbnail(_SHOWN)
        view = data_uri(encode_image(shown, ".jpg", quality=85), "image/jpeg")
        return {"image": f"upload:{token}", "width": image.width, "height": image.height, "view": view}

    def _image(self, name: Any) -> tuple[Image.Image, str]:
        kind, _, token = str(name).partition(":")
        try:
            if kind == "sample":
                sample = self._frames[self._samples[token]]
                return sample["image"], str(sample["id"])
            if kind == "upload":
                return self._images.get(token)
        except KeyError:
            raise ValueError("This image is not kept any more; send it again.") from None
        raise ValueError("There is no image; drop one, choose a sample frame, or use the webcam.")

    def start(self, tab: str, fields: Mapping[str, Any]) -> Job:
        """Puts a request into the queue; the job's result is the answer for the page.

        Raises:
            BlockingIOError: If too many wait already.
            ValueError: If a field cannot work.
        """
        label = str(fields.get("model", ""))
        kind = self._kinds.get(label)
        if kind is None or (kind in (PLACES, DRAWING)) != (tab == kind):
            raise ValueError(f"there is no model {label[:60]!r} here; expected one of {', '.join(self._kinds)}")
        if kind == PLACES:
            return self.queue.submit(lambda job: self._place(label, fields, job))
        if kind == DRAWING:
            return self.queue.submit(lambda job: self._draw(label, fields, job))
        request, (image, image_id) = MapRequest.read(fields, self.limits), self._image(fields.get("image"))
        request.options().resolved(self._predictors[label].model.config)
        return self.queue.submit(lambda job: self._map(label, image, image_id, request, job))

    def _map(self, label: str, image: Image.Image, image_id: str, request: MapRequest, job: Job) -> dict[str, Any]:
        job.total = request.steps
        result = run_map(self._predictors[label], label, image, image_id, request, job.tick, self.limits)
        files = map_files(result)
        token = self._results.put(Kept(files, partial(report_pixel, result)), result.bytes)
        height, width = result.prediction.map.shape[:2]
        return {
            "token": token,
            "layers": cards.layers(result),
            "bars": cards.bars(result),
            "legend": [[list(map(int, color)), name] for color, name in cards.legend(result)],
            "uncertainty": result.prediction.uncertainty_title,
            "size": [width, height],
            "html": cards.map_cards(result),
            "files": list(files),
            "calls": result.prediction.num_steps,
        }

    def _place(self, label: str, fields: Mapping[str, Any], job: Job) -> dict[str, Any]:
        found = run_place(self._open(label, lambda name: PlaceModel.load(name, self._device)), fields, job.tick, self.limits)
        assert found.map is not None
        token = self._results.put(Kept(found.files, found.map.report), found.bytes)
        return {"token": token, **cards.place_layers(found.map), "html": found.html, "files": list(found.files)}

    def _draw(self, label: str, fields: Mapping[str, Any], job: Job) -> dict[str, Any]:
        pipe = self._open(label, lambda name: open_generator(name, self._device))
        drawings = 2 if any(fields.get(name, 1) for name in ("consistency_scale", "prior_scale")) else 1
        job.total = drawings * int(fields.get("steps", 50)) if isinstance(fields.get("steps", 50), int) else 0
        found = run_drawing(pipe, self._sources[label], fields, job.tick, self.limits)
        return {"token": self._results.put(Kept(found.files), found.bytes), "html": found.html, "files": list(found.files)}

    # ---- what is asked about it ----------------------------------------------------------------------------------------

    def pixel(self, token: str, x: int, y: int) -> dict[str, Any]:
        """What a map says about a pixel.

        Raises:
            KeyError: If the result is forgotten.
            ValueError: If there is no such pixel.
        """
        kept = self._results.get(token)
        if kept.report is None:
            raise ValueError("this result has no pixels to ask about")
        with torch.inference_mode():
            report = kept.report(x, y)
        return {"html": cards.pixel_card(report), "headline": report.headline}

    def file(self, token: str, name: str) -> bytes:
        """A file of a result.

        Raises:
            KeyError: If the result is forgotten or has no such file.
        """
        make = self._results.get(token).files[name]
        with self._drawing_files:
            return make()

    def close(self) -> None:
        """Cancels all and ends the worker."""
        self.queue.close()


def _labelled(models: Sequence[str], shipped: Sequence[str]) -> dict[str, str]:
    """Labels of models, to their names: the short one where it tells them apart; a given one takes the place of a shipped one.

    Raises:
        ValueError: If there is none.
    """
    given = list(dict.fromkeys(models))
    counts = Counter(label_of(name) for name in given)
    found = {label_of(name) if counts[label_of(name)] == 1 else name: name for name in given}
    found |= {label_of(name): name for name in shipped if label_of(name) not in counts}
    if not found:
        raise ValueError("there is no model to show; expected a folder, a hub id or a shipped name")
    return found


def _described(label: str, predictor: Predictor) -> dict[str, Any]:
    config = predictor.model.config
    options = PredictionOptions().resolved(config)
    steps = options.num_inference_steps
    return {
        "name": label,
        "diffusion": bool(config.diffusion),
        "samplers": [name for name in SAMPLERS if name != "dpmpp_2m" or config.time_difference == 0],
        "steps": steps if isinstance(steps, int) else 3,
        "samples": options.ensemble_size,
        "metres": predictor.in_metres,
        "classes": predictor.has_classes,
    }
