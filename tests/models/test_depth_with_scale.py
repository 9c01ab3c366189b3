"""Depth models that predict a scale: loss, output, ensembles, intervals."""

import math

import pytest
import torch
from tiny_models import depth_map, images, tiny_depth_model, tiny_segmenter
from torch.distributions import Laplace

from noise2map.diffusion import image_generator
from noise2map.models.depth import DepthAggregator, laplace_loss

OBJECTIVES = ["laplace", "laplace_mixture"]


def model_of(objective, **fields):
    return tiny_depth_model(objective=objective, depth_representation="log", **fields)


def run(model, pixel_values, **options):
    generators = [image_generator(0, str(index)) for index in range(len(pixel_values))]
    with torch.no_grad():
        return model(pixel_values=pixel_values, generator=generators, **options)


def test_loss_is_the_likelihood_of_the_valid_pixels():
    prediction = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    labels_m = depth_map(2, 8, 8)
    valid = labels_m > 0
    expected = -Laplace(prediction[:, 0].log(), prediction[:, 1]).log_prob(labels_m.log())[valid].mean()
    assert float(laplace_loss(prediction, labels_m)) == pytest.approx(float(expected), rel=1e-5)
    prediction.requires_grad_()
    nothing = laplace_loss(prediction, torch.zeros(2, 8, 8))
    nothing.backward()
    assert float(nothing.detach()) == 0 and not bool(prediction.grad.any())


def test_likelihood_is_best_at_the_median_and_the_mean_distance():
    """Maximum likelihood of a Laplace distribution in closed form."""
    labels_m = depth_map(1, 64, 64)
    logs = labels_m[labels_m > 0].log()
    median, scale = logs.median(), (logs - logs.median()).abs().mean()

    def loss(log_depth, b):
        return float(laplace_loss(torch.stack([log_depth.exp(), b]).view(1, 2, 1, 1).expand(1, 2, 64, 64), labels_m))

    best = loss(median, scale)
    assert best == pytest.approx(1 + math.log(2 * float(scale)), rel=1e-5)
    assert best < min(
        loss(median + 0.05, scale), loss(median - 0.05, scale), loss(median, scale * 1.05), loss(median, scale * 0.95)
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("fields", [{}, {"diffusion": False}, {"depth_representation": "linear"}])
def test_output_has_a_scale_at_the_cost_of_one_call(objective, fields):
    model = tiny_depth_model(**{"objective": objective, "depth_representation": "log", **fields})
    out = run(model, images(2), num_inference_steps=1, output_uncertainty=True)
    assert out.predicted_depth.shape == out.predicted_scale.shape == out.uncertainty.shape == (2, 64, 64)
    assert out.num_steps.tolist() == [1, 1] and set(out.uncertainties) == {"scale"}
    assert float(out.predicted_scale.min()) > 0
    assert 0 < float(out.uncertainty.min()) <= float(out.uncertainty.max()) < 1
    cells = model.decode_map(model.encode_image(images(2)), num_inference_steps=1)
    assert torch.allclose(cells.uncertainty, 1 - torch.exp(-cells.predicted_scale))
    assert out["predicted_scale"] is out.predicted_scale
    assert (out.mixture is None) == (objective == "laplace")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_intervals_are_nested_and_hold_the_median(objective):
    out = run(model_of(objective), images(1), num_inference_steps=1)
    low, high = out.interval(0.5)
    lower, higher = out.interval(0.9)
    assert bool((lower < low).all()) and bool((low < high).all()) and bool((high < higher).all())
    inside = (low < out.predicted_depth) & (out.predicted_depth < high)
    assert float(inside.float().mean()) > (0.999 if objective == "laplace" else 0.9)  # the median is resized by itself


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "options", [{"num_inference_steps": 1}, {"num_inference_steps": 2, "ensemble_size": 2, "average": "steps"}]
)
def test_a_batch_is_its_images(objective, options):
    model = model_of(objective)
    together = run(model, images(3), **options)
    for index in range(3):
        with torch.no_grad():
            alone = model(pixel_values=images(3)[index : index + 1], generator=image_generator(0, str(index)), **options)
        assert torch.allclose(together.predicted_depth[index], alone.predicted_depth[0], rtol=1e-4)
        assert torch.allclose(together.predicted_scale[index], alone.predicted_scale[0], rtol=1e-4)


@pytest.mark.parametrize("average", ["last", "steps"])
@pytest.mark.parametrize(("steps", "samples"), [(1, 3), (3, 1), (3, 2)])
def test_scale_of_several_samples_against_draws(average, steps, samples):
    """The law of total variance, by drawing from the mixture of the members."""
    stream = torch.rand(steps, samples, 2, 1, 2, generator=torch.Generator().manual_seed(2)) + 0.2
    aggregator = DepthAggregator(1, samples, average)
    for value in stream:
        aggregator.update(value, torch.ones(1, dtype=torch.bool))
    prediction, kinds = aggregator.result()
    members = stream[-1] if average == "last" else stream.flatten(0, 1)
    torch.manual_seed(0)
    drawn = Laplace(members[:, 0].log(), members[:, 1]).sample((200_000,)).flatten(0, 1)
    assert prediction.shape == (1, 2, 1, 2)
    assert torch.allclose(prediction[0, 0], members[:, 0].mean(0), rtol=1e-5)
    assert torch.allclose(prediction[0, 1], drawn.std(0) / math.sqrt(2), rtol=0.02)
    assert torch.allclose(kinds["scale"], 1 - torch.exp(-prediction[:, 1]))


def test_spread_of_a_millionth_is_not_rounding():
    members = 10 * (1 + torch.tensor([0.0, 1e-6, 2e-6, 3e-6]).double())
    aggregator = DepthAggregator(1, 1, "last")
    for value in members:
        aggregator.update(value.view(1, 1, 1, 1), torch.ones(1, dtype=torch.bool))
    spread = float(aggregator.result()[1]["sample_variance"])
    assert spread == pytest.approx(float(members.std(correction=0) / members.mean()), rel=1e-3)


def test_steps_hold_the_map_alone():
    out = run(model_of("laplace_mixture"), images(1), num_inference_steps=2, output_steps=True)
    assert [step.prediction.shape for step in out.steps] == [(1, 1, 16, 16)] * 2


def test_scale_of_samples_is_their_spread():
    """A model of samples states a distribution in the call without noise; of its samples only the spread counts."""
    fields = {"noise_channels": 2, "map_scale": 1.0, "churn": 1.0, "time_difference": 0}
    model = model_of("crps", **fields)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        features = model.encode_image(images(1))
        out = model.decode_map(features, 2, 5, sampling="diffusion", generator=generator, output_samples=True)
        assert out.samples.shape == (1, 5, 1, 16, 16)
        expected = out.samples[0, :, 0].log().std(0, correction=0) / math.sqrt(2)
        assert torch.allclose(out.predicted_scale[0], expected, rtol=1e-3, atol=1e-6)
        single = model.decode_map(features, 2, 1, sampling="diffusion", generator=generator)
        assert single.predicted_scale is None and "scale" not in single.uncertainties
        assert model.decode_map(features, sampling="one_pass").predicted_scale is not None


def test_temperature_multiplies_the_scale_and_leaves_the_median():
    plain, hot = (run(model_of("laplace", temperature=t), images(1), num_inference_steps=1) for t in (1.0, 2.0))
    assert torch.allclose(hot.predicted_scale, 2 * plain.predicted_scale, rtol=1e-4)
    assert torch.allclose(hot.predicted_depth, plain.predicted_depth, rtol=1e-4)
    model = model_of("laplace")
    model.config.temperature = 2.0
    assert torch.equal(run(model, images(1), num_inference_steps=1).predicted_scale, hot.predicted_scale)


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"objective is 'laplace'; expected one of 'task', 'l2', .* for segmentation"):
        tiny_segmenter(objective="laplace")
    with pytest.raises(ValueError, match="no predicted_scale; expected that of a model with objective 'laplace'"):
        run(tiny_depth_model(), images(1)).interval(0.9)
