"""Task losses against brute force, and depth reduced by its valid pixels alone."""

import math

import pytest
import torch
from tiny_models import depth_map, tiny_depth_model, tiny_segmenter

from noise2map.models.depth import gradient_loss, reduce_depth, sigloss
from noise2map.models.segmentation import segmentation_loss


def logits_and_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, generator=generator)
    labels = torch.randint(0, 4, (2, 6, 6), generator=generator)
    labels[0, :2] = 255
    return logits, labels


@pytest.mark.parametrize("average", ["all", "valid"])
def test_segmentation_loss_by_brute_force(average):
    logits, labels = logits_and_labels()
    total, known = 0.0, 0
    for b in range(2):
        for y in range(6):
            for x in range(6):
                label = int(labels[b, y, x])
                if label != 255:
                    total -= float(logits[b, :, y, x].double().log_softmax(0)[label])
                    known += 1
    expected = total / (known if average == "valid" else labels.numel())
    assert float(segmentation_loss(logits, labels, average=average)) == pytest.approx(expected, rel=1e-5)


def test_segmentation_loss_resizes_logits_to_the_labels():
    logits, labels = logits_and_labels()
    large = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    resized = torch.nn.functional.interpolate(logits, size=(24, 24), mode="bilinear")
    assert torch.allclose(segmentation_loss(logits, large), segmentation_loss(resized, large))


def test_maps_without_a_known_pixel_give_zero_and_finite_gradients():
    logits, labels = logits_and_labels()
    logits.requires_grad_()
    for average in ("all", "valid"):
        loss = segmentation_loss(logits, torch.full_like(labels, 255), average=average)
        loss.backward()
        assert float(loss.detach()) == 0
        assert not logits.grad.any()
    depth_m = torch.rand(1, 1, 4, 4, requires_grad=True)
    loss = sigloss(depth_m, torch.zeros(1, 4, 4))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not depth_m.grad.any()


def test_sigloss_by_brute_force():
    generator = torch.Generator().manual_seed(0)
    depth_m = torch.rand(2, 1, 5, 5, generator=generator) * 10 + 0.1
    labels_m = torch.rand(2, 5, 5, generator=generator) * 10 + 0.1
    labels_m[labels_m < 2] = 0
    ratios = [
        math.log(float(d) + 1e-3) - math.log(float(g) + 1e-3)
        for d, g in zip(depth_m.flatten(), labels_m.flatten(), strict=True)
        if float(g) > 0
    ]
    mean = sum(ratios) / len(ratios)
    variance = sum((r - mean) ** 2 for r in ratios) / (len(ratios) - 1)
    assert len(ratios) < 50
    assert float(sigloss(depth_m, labels_m)) == pytest.approx(math.sqrt(variance + 0.15 * mean**2), rel=1e-5)


def test_sigloss_is_nearly_blind_to_scale_and_not_to_shape():
    generator = torch.Generator().manual_seed(0)
    labels_m = torch.rand(1, 8, 8, generator=generator) * 10 + 1
    scaled = float(sigloss(labels_m[:, None] * 2, labels_m))
    assert scaled == pytest.approx(math.sqrt(0.15) * math.log(2), rel=1e-2)
    assert float(sigloss(labels_m[:, None], labels_m)) == pytest.approx(0, abs=1e-3)
    assert float(sigloss(labels_m[:, None].flip(-1), labels_m)) > 2 * scaled / math.log(2) * 0.5


@pytest.mark.parametrize("behind", [0.0, 1e6, math.nan, math.inf, -5.0])
def test_what_the_mask_hides_reaches_neither_the_loss_nor_its_gradient(behind):
    generator = torch.Generator().manual_seed(0)
    labels_m = torch.rand(1, 6, 6, generator=generator) + 1
    valid = torch.rand(1, 6, 6, generator=generator) > 0.3
    results = []
    for hidden in (1.5, behind):
        depth_m = (torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1)) + 1).requires_grad_()
        loss = sigloss(depth_m, torch.where(valid, labels_m, torch.tensor(hidden)), valid)
        loss.backward()
        results.append((loss.detach(), depth_m.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not results[0][1][0][~valid].any()


@pytest.mark.parametrize("size", [(3, 3), (4, 5), (5, 4)])
def test_reduced_depth_by_brute_force(size):
    generator = torch.Generator().manual_seed(0)
    depth_m = torch.rand(2, 12, 17, generator=generator) * 10 + 1
    valid = torch.rand(2, 12, 17, generator=generator) > 0.5
    valid[0, :6, :8] = False
    hidden = torch.where(valid, depth_m, torch.tensor(math.nan))
    small, known = reduce_depth(hidden, valid, size)
    assert small.shape == known.shape == (2, *size)
    for b in range(2):
        for y in range(size[0]):
            for x in range(size[1]):
                rows = slice(y * 12 // size[0], -(-(y + 1) * 12 // size[0]))  # floor and ceiling: cells may share pixels
                columns = slice(x * 17 // size[1], -(-(x + 1) * 17 // size[1]))
                inside = depth_m[b, rows, columns][valid[b, rows, columns]]
                assert bool(known[b, y, x]) == (inside.numel() > 0)
                expected = float(inside.mean()) if inside.numel() else 0.0
                assert float(small[b, y, x]) == pytest.approx(expected, rel=1e-5)
    assert not bool(known.all())


@pytest.mark.parametrize("size", [(6, 7), (3, 9)])
def test_gradient_loss_by_brute_force(size):
    generator = torch.Generator().manual_seed(0)
    depth_m, labels_m = (torch.rand(2, *size, generator=generator) * 10 + 0.1 for _ in range(2))
    labels_m[torch.rand(2, *size, generator=generator) < 0.3] = 0
    expected = 0.0
    for stride in (1, 2, 4):
        for down, right in ((stride, 0), (0, stride)):
            errors = []
            for b in range(2):
                for y in range(size[0] - down):
                    for x in range(size[1] - right):
                        true = float(labels_m[b, y, x]), float(labels_m[b, y + down, x + right])
                        if all(true):
                            predicted = float(depth_m[b, y, x]), float(depth_m[b, y + down, x + right])
                            errors.append(abs(math.log(predicted[1] / predicted[0]) - math.log(true[1] / true[0])))
            expected += sum(errors) / max(len(errors), 1) / 3
    assert float(gradient_loss(depth_m[:, None], labels_m)) == pytest.approx(expected, rel=1e-5)


def test_gradient_loss_sees_slopes_and_not_scale_and_not_what_is_invalid():
    labels_m = depth_map(1, 16, 16)
    wrong = torch.where(labels_m > 0, labels_m, torch.tensor(7.0))
    small = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).add(1).requires_grad_()
    assert float(gradient_loss(3 * wrong[:, None], labels_m)) == pytest.approx(0, abs=1e-6)
    assert float(gradient_loss(wrong[:, None].flip(-1), labels_m)) > 0.1
    gradient_loss(small, labels_m).backward()  # enlarged to the labels
    assert bool((small.grad != 0).any()) and bool(small.grad.isfinite().all())
    small.grad = None
    nothing = gradient_loss(small, torch.zeros(1, 16, 16))
    nothing.backward()
    assert float(nothing.detach()) == 0 and not bool(small.grad.any())


def test_gradient_weight_adds_to_the_loss_of_depth_alone():
    labels = depth_map(2)
    plain, steep = (tiny_depth_model(objective="laplace", depth_representation="log", gradient_weight=w) for w in (0, 2.5))
    prediction = torch.rand(2, 2, 64, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    expected = plain.loss(prediction, labels) + 2.5 * gradient_loss(prediction[:, :1], labels)
    assert torch.allclose(steep.loss(prediction, labels), expected)
    with pytest.raises(ValueError, match=r"gradient_weight is 0\.5; expected 0 for segmentation"):
        tiny_segmenter(gradient_weight=0.5)
