"""The map of one image with its uncertainty: drawn, saved, shown in notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from noise2map.report.panels import Panel, render
from noise2map.runs.files import encode_arrays, encode_image, write_bytes, write_image

if TYPE_CHECKING:
    from noise2map.tasks.base import ImageTask


@dataclass
class Prediction:
    """The map of one image, at the size of the image. A notebook shows it as image, map and uncertainty.

    Attributes:
        id: The id of the image.
        task: What its map is.
        map: Class ids ``(H, W)`` uint8 or uint16, metres ``(H, W)`` float32, or unit normals ``(H, W, 3)`` float32.
        uncertainty: ``(H, W)`` float32 in [0, 1]; None where it is not defined (one step of one sample of depth).
        uncertainty_kind: ``"entropy"``, ``"scale"`` or another of the kinds in docs/metrics.md.
        uncertainties: Every kind that is defined for the run, by name, if they were asked for.
        num_steps: Decoder calls that were made for it.
        processed_size: Width and height at which the model saw the image.
        image: The image ``(H, W, 3)`` uint8.
        computed: Map and uncertainty ``(h, w)`` at the processed size, from which those at full size are resized; of no class maps.
        interval: Where the truth is with the probability that was asked for, by name, at the size of the image: ``lower_m`` and
            ``upper_m`` ``(H, W)``, ``cone_degrees`` ``(H, W)``, or ``members`` ``(K, H, W)`` bool of classes.
        id2label: Class id to name (segmentation).
        palette: ``(K, 3)`` uint8 (segmentation).
        tiles: How the image was cut, `noise2map.inference.tiling.plan.TilePlan`; None if it was processed whole.
    """

    id: str
    task: "ImageTask" = field(repr=False)
    map: np.ndarray
    uncertainty: np.ndarray | None
    uncertainty_kind: str
    num_steps: int
    processed_size: tuple[int, int] = (0, 0)
    uncertainties: dict[str, np.ndarray] = field(default_factory=dict)
    image: np.ndarray | None = field(default=None, repr=False)
    computed: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    interval: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    id2label: dict[int, str] = field(default_factory=dict, repr=False)
    palette: np.ndarray | None = field(default=None, repr=False)
    tiles: Any = field(default=None, repr=False)

    @property
    def labels(self) -> np.ndarray | None:
        """Class ids ``(H, W)``, for segmentation."""
        return self._if("labels")

    @property
    def depth_m(self) -> np.ndarray | None:
        """Metres ``(H, W)``, for depth."""
        return self._if("depth_m")

    @property
    def normals(self) -> np.ndarray | None:
        """Unit vectors ``(H, W, 3)``, for surface normals."""
        return self._if("normals")

    @property
    def values(self) -> torch.Tensor:
        """The map as tasks paint it: class ids ``(H, W)`` int64, metres ``(H, W)``, or unit normals ``(3, H, W)``."""
        found = np.ascontiguousarray(self.map if self.map.ndim == 2 else self.map.transpose(2, 0, 1))
        return torch.from_numpy(found if found.dtype.kind == "f" else found.astype(np.int64))

    def _if(self, key: str) -> np.ndarray | None:
        return self.map if self.task.sample_key == key else None

    @property
    def uncertainty_title(self) -> str:
        """``"uncertainty (step flip)"``."""
        return f"uncertainty ({self.uncertainty_kind.replace('_', ' ')})"

    def panel(self, heading: str = "") -> Panel:
        """Image, map and, where it is defined, uncertainty, with legend or color bar.

        Args:
            heading: A line above all.

        Raises:
            ValueError: If the prediction was made without its image.
        """
        if self.image is None:
            raise ValueError("this prediction holds no image; expected one made by Predictor")
        return self.task.panel(self, self.image, heading, self.uncertainty_title)

    def plot(self, heading: str = "") -> Image.Image:
        """The panel as a Pillow image; arguments and errors as in `panel`."""
        return render(self.panel(heading or self.id))

    def save(self, path: str | Path) -> None:
        """Write the drawn panel (``.png``, ``.jpg``, ``.webp``), or the maps as arrays (``.npz``).

        Raises:
            ValueError: If the suffix is none of an image format or ``.npz``.
            OSError: If the file cannot be written.
        """
        if Path(path).suffix != ".npz":
            write_image(path, self.plot())
            return
        maps = {self.task.sample_key: self.map, "uncertainty": self.uncertainty}
        write_bytes(path, encode_arrays({name: value for name, value in maps.items() if value is not None}))

    def _repr_png_(self) -> bytes | None:
        return None if self.image is None else encode_image(self.plot())


def predictions_of(
    output: Any,
    task: "ImageTask",
    processor: Any,
    images: Sequence[Image.Image],
    ids: Sequence[str],
    kind: str,
    every_uncertainty: bool = False,
    before: Sequence[tuple[int, int]] = (),
) -> list[Prediction]:
    """An output of a map model as one prediction for each image.

    Args:
        output: What `decode_map` gave for B images.
        task: What its maps are.
        processor: The model's image processor.
        images: The B images, of any size.
        ids: Of the images.
        kind: The uncertainty that the checkpoint names.
        every_uncertainty: Keep every kind that is defined for the run, not only that one.
        before: Heights and widths to bring the maps to before those of the images: the processed size of an output at cells.
    """
    shapes = [(image.height, image.width) for image in images]
    wanted = list(output.uncertainties) if every_uncertainty else [kind] * (output.uncertainty is not None)
    resized = [output.uncertainties_at(*before, shape, rows=[place], kinds=wanted) for place, shape in enumerate(shapes)]
    kinds = {name: [maps[name][0].cpu().numpy() for maps in resized] for name in wanted}
    at_cells = task.computed(output)
    if kind in kinds and not before:
        at_cells["uncertainty"] = output.uncertainties[kind].clamp(0, 1)
    computed = {name: values.float().cpu().numpy() for name, values in at_cells.items()}
    maps, steps = task.arrays(output, processor, shapes, before), output.num_steps.tolist()
    return [
        Prediction(
            id=one,
            task=task,
            map=maps[i],
            uncertainty=kinds[kind][i] if kind in kinds else None,
            uncertainty_kind=kind,
            num_steps=steps[i],
            uncertainties={name: values[i] for name, values in kinds.items()} if every_uncertainty else {},
            image=np.asarray(images[i]),
            computed={name: values[i] for name, values in computed.items()},
        )
        for i, one in enumerate(ids)
    ]
