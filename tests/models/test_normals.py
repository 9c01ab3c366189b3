"""The model of surface normals: gradients, saving, batches, loss and aggregation against hand counts."""

import math

import pytest
import torch
from tiny_models import images, tiny_config

from noise2map.diffusion import image_generator
from noise2map.models import MapNormalsOutput, Noise2MapForNormalEstimation
from noise2map.models.distributions.angular import expected_angle, resultant_length
from noise2map.models.normals import NormalsAggregator, angular_loss, normals_loss, reduce_normals


def tiny_normals_model(seed=0, **fields):
    torch.manual_seed(seed)
    return Noise2MapForNormalEstimation(tiny_config(**{"map_scale": 0.1, **fields})).eval()


def normal_map(batch_size=1, height=64, width=64, seed=1):
    """Unit vectors with a corner of unknown pixels, ``(B, 3, H, W)``."""
    vectors = torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(seed))
    vectors = vectors / vectors.square().sum(1, keepdim=True).sqrt()
    vectors[:, :, :5, :7] = 0
    return vectors


def seeded(*names):
    return [image_generator(0, name) for name in names]


@pytest.mark.parametrize(
    "fields", [{}, {"objective": "l2"}, {"objective": "angular"}, {"self_aligned": True}, {"diffusion": False}]
)
def test_every_parameter_gets_a_gradient(fields):
    model = tiny_normals_model(**fields).train()
    out = model(pixel_values=images(2), labels=normal_map(2), generator=seeded("a", "b"))
    assert isinstance(out, MapNormalsOutput) and out.predicted_normals.shape == (2, 3, 16, 16)
    out.loss.backward()
    still = [
        name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not bool(p.grad.abs().sum() > 0))
    ]
    if not model.config.diffusion:  # the map's half of the projection sees zeros, and time is always the same
        still = [name for name in still if "time" not in name]
    assert still == []


def test_normals_have_length_one_at_every_resolution():
    model = tiny_normals_model()
    with torch.no_grad():
        out = model(pixel_values=images(2, 64, 96), num_inference_steps=2, ensemble_size=2, generator=seeded("a", "b"))
    assert out.predicted_normals.shape == (2, 3, 64, 96) and out.uncertainty.shape == (2, 64, 96)
    assert torch.allclose(out.predicted_normals.norm(dim=1), torch.ones(2, 64, 96), atol=1e-5)
    assert float(out.uncertainty.min()) >= 0 and float(out.uncertainty.max()) <= 1


@pytest.mark.parametrize("fields", [{}, {"diffusion": False}])
def test_angular_model_says_how_far_off_it_is_at_the_cost_of_one_call(fields):
    model = tiny_normals_model(objective="angular", **fields)
    with torch.no_grad():
        out = model(pixel_values=images(2), num_inference_steps=1, generator=seeded("a", "b"), output_uncertainty=True)
    assert out.predicted_normals.shape == (2, 3, 64, 64) and out.predicted_scale.shape == out.uncertainty.shape == (2, 64, 64)
    assert set(out.uncertainties) == {"scale"} and 0 < float(out.uncertainty.min()) <= float(out.uncertainty.max()) < 1
    cells = model.decode_map(model.encode_image(images(2)), num_inference_steps=1)
    assert torch.allclose(cells.uncertainty, cells.predicted_scale / 90)
    half, most = out.cone(0.5), out.cone(0.9)
    assert float(half.min()) > 0 and bool((half < most).all()) and float(most.max()) < 180
    with torch.no_grad(), pytest.raises(ValueError, match="no predicted_scale"):
        tiny_normals_model()(pixel_values=images()).cone(0.9)


def test_angular_model_draws_maps_in_one_call():
    model = tiny_normals_model(objective="angular")
    with torch.no_grad():
        out = model(pixel_values=images(2), sampling="field", ensemble_size=3, generator=seeded("a", "b"), output_samples=True)
    assert out.samples.shape == (2, 3, 3, 64, 64) and out.num_steps.tolist() == [1, 1]
    assert float((out.samples.norm(dim=2) - 1).abs().max()) < 1e-4
    assert not torch.allclose(out.samples[:, 0], out.samples[:, 1], atol=0.1)


def test_angular_loss_is_best_at_the_truth():
    labels = normal_map(1, 8, 8)
    aside = labels + torch.tensor([0.1, 0.2, 0.0]).view(1, 3, 1, 1)
    spread = torch.full((1, 1, 8, 8), 0.02)
    right, wrong = (float(angular_loss(torch.cat([one, spread], 1), labels)) for one in (labels, aside))
    unsure = float(angular_loss(torch.cat([aside, spread * 10], 1), labels))
    assert right < unsure < wrong


@pytest.mark.parametrize("average", ["last", "steps"])
def test_spread_of_several_samples_is_that_of_their_mixture(average):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(2, 3, 3, 1, 1, generator=generator) + 2, dim=2)
    stream = torch.cat([vectors, torch.rand(2, 3, 1, 1, 1, generator=generator) * 0.3 + 0.01], 2)
    run = NormalsAggregator(1, 3, average)
    for value in stream:
        run.update(value, torch.ones(1, dtype=torch.bool))
    found, kinds = run.result()
    members = stream[-1] if average == "last" else stream.flatten(0, 1)
    mean = (members[:, :3] * resultant_length(1 / members[:, 3:])).mean(0)
    assert float(resultant_length(1 / found[0, 3])) == pytest.approx(float(mean.norm()), rel=1e-3)
    assert float(kinds["scale"]) == pytest.approx(float(expected_angle(1 / found[0, 3])) / (math.pi / 2), rel=1e-3)


@pytest.mark.parametrize("objective", ["task", "angular"])
def test_saving_and_loading_keeps_the_map(objective, tmp_path):
    model = tiny_normals_model(objective=objective)
    model.save_pretrained(tmp_path)
    again = Noise2MapForNormalEstimation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        maps = [one(pixel_values=images(), generator=seeded("a")).predicted_normals for one in (model, again)]
    assert torch.equal(*maps)


def test_auto_class(tmp_path):
    from transformers import AutoModelForImageToImage

    tiny_normals_model().save_pretrained(tmp_path)
    assert isinstance(AutoModelForImageToImage.from_pretrained(tmp_path), Noise2MapForNormalEstimation)


@pytest.mark.parametrize(("steps", "objective"), [(3, "task"), ("auto", "task"), (3, "angular")])
def test_three_at_once_are_three_one_by_one(steps, objective):
    model, pixels = tiny_normals_model(objective=objective), images(3)
    options = {"num_inference_steps": steps, "ensemble_size": 2}
    with torch.no_grad():
        together = model(pixel_values=pixels, generator=seeded("a", "b", "c"), **options)
        for index, name in enumerate("abc"):
            alone = model(pixel_values=pixels[index : index + 1], generator=seeded(name), **options)
            assert torch.allclose(together.predicted_normals[index], alone.predicted_normals[0], atol=1e-4)
            assert torch.allclose(together.uncertainty[index], alone.uncertainty[0], atol=1e-4)


def test_loss_by_hand():
    """Angles of 0, 60 and 90 degrees, and an unknown pixel: 1 - cos is 0, 1/2 and 1."""
    labels = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]]).T.reshape(1, 3, 2, 2)
    tilted = [math.sin(math.radians(60)), 0, math.cos(math.radians(60))]
    prediction = torch.tensor([[0.0, 0, 1], tilted, [0, 1, 0], [0, 1, 0]]).T.reshape(1, 3, 2, 2)
    assert float(normals_loss(prediction, labels)) == pytest.approx(0.5)
    assert float(normals_loss(prediction, torch.zeros_like(labels))) == 0


def test_cells_take_the_mean_direction_of_their_known_pixels():
    normals = torch.zeros(1, 3, 4, 4)
    normals[0, 0, :2, 0] = 1  # two pixels to the right, two unknown
    normals[0, 2, :2, 2], normals[0, 1, :2, 3] = 1, 1
    small = reduce_normals(normals, (2, 2))[0]
    half = math.sqrt(0.5)
    assert small[:, 0, 0].tolist() == pytest.approx([1, 0, 0])
    assert small[:, 0, 1].tolist() == pytest.approx([0, half, half])
    assert small[:, 1].abs().sum() == 0


def test_aggregation_by_hand():
    """Two samples at right angles to each other: the mean lies between them, and its length is the square root of a half."""
    right, up = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)
    active = torch.ones(1, dtype=torch.bool)
    run = NormalsAggregator(1, 2, "last")
    assert run.update(torch.cat([right, right]), active).tolist() == [1]
    assert run.update(torch.cat([right, up]), active).tolist() == [0.5]
    found, kinds = run.result()
    half = math.sqrt(0.5)
    assert found.flatten().tolist() == pytest.approx([half, half, 0])
    assert float(kinds["sample_variance"]) == pytest.approx(1 - half)
    assert float(kinds["step_flip"]) == 0.5
    run = NormalsAggregator(1, 1, "steps")
    for vector in (right, right, up):
        run.update(vector, active)
    found, kinds = run.result()
    assert found.flatten().tolist() == pytest.approx([2 / math.sqrt(5), 1 / math.sqrt(5), 0])
    assert float(kinds["sample_variance"]) == pytest.approx(1 - math.sqrt(5) / 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(1, 64, 64), r"labels have shape \(1, 64, 64\); expected \(1, 3, 64, 64\)"),
        (torch.ones(1, 3, 64, 64), "vectors of a length such as 1.732"),
    ],
)
def test_impossible_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_normals_model()(pixel_values=images(), labels=labels)
