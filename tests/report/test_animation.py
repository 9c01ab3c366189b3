from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from noise2map.report import animation
from noise2map.report.animation import DenoisingStep
from noise2map.report.palettes import colorize_labels, generic_palette


def sequence(steps=4, classes=5, channels=8):
    random = np.random.default_rng(1)
    return [
        DenoisingStep(1 - i / steps, random.normal(size=(channels, 6, 8)), random.normal(size=(classes, 6, 8)))
        for i in range(steps)
    ]


def test_moments_take_one_map_of_the_batch():
    prediction = torch.arange(3.0)[:, None, None].expand(3, 4, 5)
    steps = [SimpleNamespace(t=1 - i / 2, x_t=torch.full((3, 2, 4, 5), float(i)), prediction=prediction) for i in range(2)]
    found = animation.denoising_steps(steps, index=2)
    assert [step.t for step in found] == [1.0, 0.5]
    assert found[1].noisy.shape == (2, 4, 5) and (found[1].noisy == 1).all()
    assert found[0].prediction.shape == (1, 4, 5) and (found[0].prediction == 2).all()
    with pytest.raises(ValueError, match="output_steps"):
        animation.denoising_steps([])


def test_flips_are_counted_as_by_hand():
    trajectory = sequence()
    flips = animation.flips_so_far(trajectory)
    assert (flips[0] == 0).all()
    for row, column in [(0, 0), (3, 5), (5, 7)]:
        winners = [int(np.argmax(step.prediction[:, row, column])) for step in trajectory]
        changes = [int(a != b) for a, b in pairwise(winners)]
        assert flips[-1][row, column] == pytest.approx(sum(changes) / 3)
        assert flips[2][row, column] == pytest.approx(sum(changes[:2]) / 3)


def test_classes_show_through_the_noise_at_the_end():
    random = np.random.default_rng(0)
    labels = np.zeros((12, 16), int)
    labels[:, 5:] = 1
    labels[6:, 9:] = 2
    codes = random.normal(size=(3, 32))
    clean = np.moveaxis(codes[labels], -1, 0)
    trajectory = [
        DenoisingStep(1.0, random.normal(size=clean.shape) * 50, clean),
        DenoisingStep(0.0, clean + 0.05 * random.normal(size=clean.shape), clean),
    ]
    first, last = (picture.astype(float) for picture in animation.noisy_images(trajectory))

    def within_over_all(picture):
        means = np.stack([picture[labels == k].mean(0) for k in range(3)])[labels]
        return ((picture - means) ** 2).mean() / picture.var(axis=(0, 1)).mean()

    assert within_over_all(first) > 0.9  # colors of noise tell nothing about classes
    assert within_over_all(last) < 0.05
    assert first.std() > 20  # and the strong noise is not clipped to black and white


def test_one_channel_is_painted_like_depth():
    trajectory = [DenoisingStep(0.0, np.linspace(-1, 1, 48).reshape(1, 6, 8), np.ones((1, 6, 8)))]
    picture = animation.noisy_images(trajectory)[0]
    assert picture.shape == (6, 8, 3) and picture[0, 0].sum() > picture[-1, -1].sum()


def test_frames_and_files(tmp_path):
    palette = generic_palette(5)
    image = np.zeros((24, 32, 3), np.uint8)
    frames = animation.denoising_frames(image, sequence(), lambda logits: colorize_labels(logits.argmax(0), palette))
    assert len(frames) == 4 and len({frame.size for frame in frames}) == 1
    for suffix in (".gif", ".webp"):
        path = tmp_path / f"a{suffix}"
        animation.save_animation(path, frames, duration_ms=300, hold_ms=900)
        with Image.open(path) as file:
            assert file.n_frames == 4 and file.size == frames[0].size
            durations = []
            for index in range(4):
                file.seek(index)
                file.load()
                durations.append(file.info["duration"])
            assert durations == [300, 300, 300, 900]
            assert file.info["loop"] == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_depth_frames_have_no_flips():
    image = np.zeros((24, 32, 3), np.uint8)
    frames = animation.denoising_frames(image, sequence(2, classes=1, channels=1), lambda m: np.zeros((6, 8, 3), np.uint8))
    assert len(frames) == 2


def test_what_cannot_be_animated_is_refused(tmp_path):
    small, large = Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))
    with pytest.raises(ValueError, match="one size"):
        animation.save_animation(tmp_path / "a.gif", [small, large])
    with pytest.raises(ValueError, match="one size"):
        animation.save_animation(tmp_path / "a.gif", [])
    with pytest.raises(ValueError, match="mp4"):
        animation.save_animation(tmp_path / "a.mp4", [small])
