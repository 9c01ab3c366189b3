"""The section of a recipe for bird's-eye-view maps."""

from dataclasses import dataclass, field

BEV_DATA_SETS = ("nuscenes", "freedoom-surround")


@dataclass(frozen=True)
class BevSection:
    """Sensors and augmentation of bird's-eye-view maps; the grids are those of ``model.config``.

    Attributes:
        sweeps: most LiDAR sweeps before each key frame.
        image_scale: size of the network's images over the original ones, at evaluation; then ``data.size`` is cut, centred
            across, at the bottom.
        augment_image_scale: range of that scale in training.
        augment_image_flip: probability of mirroring an image.
        augment_image_rotate_deg: largest rotation of an image.
        augment_scene_scale: range of the scene's scale.
        augment_scene_rotate_deg: largest rotation of the scene.
        augment_scene_shift_m: standard deviation of its shift.
        augment_scene_flip: probability of mirroring it along each of x and y.
    """

    sweeps: int = 9
    image_scale: float = 0.48
    augment_image_scale: list[float] = field(default_factory=lambda: [0.38, 0.55])
    augment_image_flip: float = 0.5
    augment_image_rotate_deg: float = 5.4
    augment_scene_scale: list[float] = field(default_factory=lambda: [0.9, 1.1])
    augment_scene_rotate_deg: float = 45.0
    augment_scene_shift_m: float = 0.5
    augment_scene_flip: float = 0.5

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            ValueError: naming the field, its value and what was expected.
        """
        for name in ("augment_image_scale", "augment_scene_scale"):
            pair = getattr(self, name)
            self._expect(len(pair) == 2 and 0 < pair[0] <= pair[1], name, "[low, high]")
        for name in ("augment_image_flip", "augment_scene_flip"):
            self._expect(0 <= getattr(self, name) <= 1, name, "a probability")
        for name in ("sweeps", "augment_scene_shift_m", "augment_image_rotate_deg", "augment_scene_rotate_deg"):
            self._expect(getattr(self, name) >= 0, name, "0 or more")
        self._expect(self.image_scale > 0, "image_scale", "a positive number")

    def _expect(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"recipe field bev.{name} is {getattr(self, name)!r}; expected {expected}")
