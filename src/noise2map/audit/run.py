"""One run of ``noise2map audit``: open, look through, run the model, rank, write."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from noise2map.audit.model_pass import ModelPass
from noise2map.audit.page import write_page
from noise2map.audit.ranking import SUSPECT_COLUMNS, Ranking, Suspect, rank
from noise2map.audit.regions import log_frequencies
from noise2map.audit.survey import survey
from noise2map.data.folder import ALL, split_names
from noise2map.data.freedoom.dataset import is_rendered
from noise2map.data.subsets import Subset
from noise2map.evaluation.opening import LabelledData, LoadedModel, ScoredData, open_labelled, same_place
from noise2map.inference.loading import load_model, pick_device, pick_dtype
from noise2map.inference.predictor import Predictor
from noise2map.inference.settings import config_settings
from noise2map.models.decoding import PredictionOptions, check_count
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import settings_checksum, weights_checksum
from noise2map.runs.output_folder import OutputFolder
from noise2map.runs.progress import progress_bar
from noise2map.runs.words import counted
from noise2map.tasks import task_of

logger = logging.getLogger(__name__)

_SHOWN = 10
_SHOWN_COLUMNS = ("rank", "image", "score", "label", "model", "area", "left", "top", "right", "bottom")


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Options of an audit; see ``noise2map audit --help``.

    Attributes:
        model: The model.
        data: The labelled images.
        decoding: How maps are decoded.
        uncertainty: The kind of uncertainty that ranks what to label next.
        min_share: Least area of a region, as a share of its image.
        top: The most regions in ``suspects.csv``.
        shown: How many of them the page shows.

    Raises:
        ValueError: If a number cannot work.
    """

    model: str
    data: ScoredData
    decoding: PredictionOptions = field(default_factory=PredictionOptions)
    uncertainty: str = "entropy"
    min_share: float = 0.001
    top: int = 1000
    shown: int = 50

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        if not 0 < self.min_share < 1:
            raise ValueError(f"min_share is {self.min_share!r}; expected a share of the image between 0 and 1")
        check_count("top", self.top)
        check_count("batch_size", self.data.batch_size)


@dataclass(frozen=True)
class AuditReport:
    """Findings of an audit.

    Attributes:
        ranking: Regions and images.
        id2label: The classes.
        looked_at: Images that the model has looked at in this run; those of earlier runs are not among them.
        trained_on: Images that the model was trained on, where that is known.
    """

    ranking: Ranking
    id2label: Mapping[int, str]
    looked_at: int
    trained_on: int | None

    @property
    def suspects(self) -> list[Suspect]:
        """The most suspicious regions."""
        return self.ranking.suspects

    def text(self) -> str:
        """A summary for the screen."""
        ranked = self.ranking
        head = f"{counted(ranked.regions, 'suspicious region')} in {counted(len(ranked.images), 'image')}"
        rows = [one.row(place, self.id2label) for place, one in enumerate(ranked.suspects[:_SHOWN], 1)]
        return f"{head}\n\n{text_table(rows, _SHOWN_COLUMNS)}" if rows else f"{head}: the model agrees with the labels"


def kind_of(root: Path, split: str | None = None) -> str:
    """What `audit` takes a folder for when nobody says: ``"freedoom"`` where it was rendered, else ``"folder"``."""
    return "freedoom" if is_rendered(root) or is_rendered(root / (split or "test")) else "folder"


def run_audit(chosen: AuditOptions, folder: OutputFolder, progress: bool = True) -> AuditReport:
    """Audit the labels of a dataset, and write what was found to a folder.

    Args:
        chosen: What to audit, and with which model.
        folder: Where to: ``suspects.csv``, ``images.csv``, ``label_next.csv``, ``report.html``, and the model's maps.
        progress: Show bars on standard error.

    Raises:
        OSError: If something is missing, or cannot be read or written.
        ValueError: If the model has no classes, model and data do not fit, labels make no sense, or the folder holds other results.
    """
    device, dtype = pick_device(chosen.data.device), pick_dtype(chosen.data.dtype)
    predictor = Predictor(*load_model(chosen.model, device, dtype))
    task = task_of(predictor.model)
    if not task.has_classes:
        raise ValueError(f"labels are audited with a model of classes; {chosen.model!r} is one for {task}")
    data = _open(chosen, predictor)
    dataset = data.datasets[0]
    folder.use(_settings(chosen, predictor, data.split))
    model_config = predictor.model.config
    found = survey(dataset, task, predictor.id2label, model_config.semantic_loss_ignore_index, progress)
    looking = ModelPass(predictor, chosen.decoding, chosen.uncertainty, chosen.min_share)
    with progress_bar(total=len(dataset), desc="model", unit="image", shown=progress) as bar:
        count = looking.run(dataset, found.checksums, folder, chosen.data.batch_size, bar.update)
    lines = [folder.done[name] for name in found.checksums]
    ranking = rank(folder.root, lines, log_frequencies(found.pixels), chosen.top)
    _write(chosen, folder.root, ranking, predictor)
    places = {name: index for index, name in enumerate(found.checksums)}
    write_page(folder.root, ranking, lambda name: dataset[places[name]], predictor, chosen.shown, chosen.uncertainty)
    folder.begin(finished=True)
    return AuditReport(ranking, predictor.id2label, count, data.trained_on)


def _open(chosen: AuditOptions, predictor: Predictor) -> LabelledData:
    """All of an undivided folder: what a model was trained on may be wrong, too."""
    data = chosen.data
    if data.dataset == "folder" and data.split is None and data.root is not None and split_names(data.root) == [ALL]:
        data = ScoredData(**{**asdict(data), "split": ALL})
    opened = open_labelled(data, [LoadedModel(chosen.model, predictor.model, predictor.processor)])
    if opened.trained_on:
        logger.warning(
            "warning: the model was trained on %s of these; it may have learnt their errors", counted(opened.trained_on, "image")
        )
    return LabelledData(opened.split, [Subset.evenly_spaced(opened.datasets[0], data.limit or None)], opened.trained_on)


def _settings(chosen: AuditOptions, predictor: Predictor, split: str) -> dict[str, Any]:
    """What decides the files of an image, apart from the image."""
    data = chosen.data.chosen()
    decoding = asdict(chosen.decoding.resolved(predictor.model.config))
    return {
        "command": "audit",
        "model": same_place(chosen.model),
        "weights": weights_checksum(predictor.model),
        **config_settings(predictor.model.config),
        "processor": settings_checksum(predictor.processor.to_dict()),
        **{name: data[name] for name in ("dataset", "root", "dtype")},
        "split": split,
        **decoding,
        "uncertainty": chosen.uncertainty,
        "min_share": chosen.min_share,
    }


def _write(chosen: AuditOptions, root: Path, ranking: Ranking, predictor: Predictor) -> None:
    suspects = [one.row(place, predictor.id2label) for place, one in enumerate(ranking.suspects, 1)]
    write_csv(root / "suspects.csv", suspects, SUSPECT_COLUMNS)
    write_csv(root / "images.csv", ranking.images)
    write_csv(root / "label_next.csv", ranking.next)
