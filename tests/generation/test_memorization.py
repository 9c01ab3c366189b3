"""Nearest training images: brute force, planted copies, and the table of an evaluation."""

import numpy as np
import pytest
import torch

from noise2map.generation.evaluation.memorization import memorization, nearest_images, short_memorization


class Shrunk(torch.nn.Module):
    """Features that anybody can compute: the image at 4x4."""

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images.float(), 4).flatten(1)


def images(count, seed):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))


def features(found):
    return Shrunk()(torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2))


def test_nearest_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    drawn, training, mirrored = (torch.randn(count, 5, generator=generator) for count in (7, 11, 11))
    found = nearest_images(drawn, training, mirrored)
    for row in range(7):
        gaps = [
            (float((drawn[row] - other).norm()), index, flip)
            for flip, side in enumerate((training, mirrored))
            for index, other in enumerate(side)
        ]
        gap, index, flip = min(gaps)
        assert float(found.distance[row]) == pytest.approx(gap, rel=1e-6)
        assert (int(found.index[row]), bool(found.mirrored[row])) == (index, bool(flip))


def test_an_image_is_not_its_own_neighbour_and_not_its_mirror_image():
    training = torch.tensor([[0.0], [1.0], [5.0]])
    found = nearest_images(training, training, training.clone(), skip_same=True)
    assert found.index.tolist() == [1, 0, 1]
    assert found.distance.tolist() == [1, 1, 4]


def test_planted_copies_are_found_also_mirrored_and_fresh_images_are_none():
    training, unseen, fresh = images(40, 1), images(100, 2), images(20, 3)
    planted = [training[7], training[9][:, ::-1].copy(), *fresh]
    scores = memorization({"none": features(planted)}, features(unseen), training, Shrunk(), name="mine", batch_size=8)
    assert scores.most_alike("none", 2) == [0, 1]
    nearest = scores.rows["none"]
    assert nearest.distance[:2].tolist() == [0, 0]
    assert nearest.index[:2].tolist() == [7, 9]
    assert nearest.mirrored[:2].tolist() == [False, True]
    assert not (nearest.distance[2:] < scores.threshold).any()
    rows = {row["setting"]: row for row in short_memorization(scores)}
    assert list(rows) == ["none", "references", "training, to each other"]
    assert rows["none"]["copies %"] == pytest.approx(100 * 2 / 22, abs=0.01)
    assert rows["references"]["copies %"] == 1.0  # by construction: one of a hundred
    assert rows["references"]["nearest training image, median"] == 1.0


def test_exact_copies_count_where_some_references_are_copies_too():
    training, unseen = images(40, 1), images(100, 2)
    unseen[:5] = training[:5]  # more than one of a hundred: the quantile is 0
    scores = memorization({"none": features([training[7], *images(3, 3)])}, features(unseen), training, Shrunk(), name="mine")
    assert scores.threshold == 0
    rows = {row["setting"]: row["copies"] for row in scores.table()}
    assert rows["none"] == pytest.approx(1 / 4) and rows["references"] == pytest.approx(5 / 100)


def test_references_that_were_trained_on_are_refused():
    training = images(10, 1)
    with pytest.raises(ValueError, match=r"most references are training images \(mine\)"):
        memorization({}, features(training), training, Shrunk(), name="mine")
    with pytest.raises(ValueError, match="mine holds 1 image"):
        memorization({}, features(training), training[:1], Shrunk(), name="mine")
