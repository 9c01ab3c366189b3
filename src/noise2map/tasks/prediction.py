"""The map of one image with its uncertainty: drawn, saved, shown in notebooks."""

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from noise2map.report.panels import Panel, depth_panel, render, segmentation_panel
from noise2map.runs.files import encode_image, write_bytes, write_image


@dataclass
class Prediction:
    """The map of one image, at the size of the image. A notebook shows it as image, map and uncertainty.

    Attributes:
        id: The id of the image.
        labels: Class ids ``(H, W)`` uint8 or uint16, for segmentation.
        depth_m: Metres ``(H, W)`` float32, for depth.
        uncertainty: ``(H, W)`` float32 in [0, 1]; None where it is not defined (one step of one sample of depth).
        uncertainty_kind: ``"entropy"``, ``"step_flip"``, ``"sample_variance"`` or ``"mutual_information"``.
        uncertainties: Every kind that is defined for the run, by name, if they were asked for.
        num_steps: Decoder calls that were made for it.
        processed_size: Width and height at which the model saw the image.
        image: The image ``(H, W, 3)`` uint8.
        computed: ``depth_m`` and ``uncertainty`` ``(h, w)`` at the processed size, from which those at full size are resized.
        id2label: Class id to name (segmentation).
        palette: ``(K, 3)`` uint8 (segmentation).
    """

    id: str
    labels: np.ndarray | None
    depth_m: np.ndarray | None
    uncertainty: np.ndarray | None
    uncertainty_kind: str
    num_steps: int
    processed_size: tuple[int, int]
    uncertainties: dict[str, np.ndarray] = field(default_factory=dict)
    image: np.ndarray | None = field(default=None, repr=False)
    computed: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    id2label: dict[int, str] = field(default_factory=dict, repr=False)
    palette: np.ndarray | None = field(default=None, repr=False)

    def panel(self, heading: str = "") -> Panel:
        """Image, map and, where it is defined, uncertainty, with legend or colour bar.

        Args:
            heading: A line above all.

        Raises:
            ValueError: If the prediction was made without its image.
        """
        if self.image is None:
            raise ValueError("this prediction holds no image; expected one made by Predictor")
        kind = f"uncertainty ({self.uncertainty_kind.replace('_', ' ')})"
        if self.labels is not None:
            assert self.palette is not None
            return segmentation_panel(
                self.image, self.labels, self.uncertainty, self.id2label, self.palette, heading=heading, kind=kind
            )
        assert self.depth_m is not None
        return depth_panel(self.image, self.depth_m, self.uncertainty, heading=heading, kind=kind)

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
        maps = {"labels": self.labels, "depth_m": self.depth_m, "uncertainty": self.uncertainty}
        buffer = BytesIO()
        np.savez_compressed(buffer, **{name: value for name, value in maps.items() if value is not None})
        write_bytes(path, buffer.getvalue())

    def _repr_png_(self) -> bytes | None:
        return None if self.image is None else encode_image(self.plot())
