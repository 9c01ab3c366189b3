"""Several decoders on one encoder as one model."""

import copy

import pytest
import tiny_bev
import torch
from tiny_training import CLASSES, tiny_config, tiny_model

from noise2map import Noise2MapForDepthEstimation
from noise2map.diffusion import image_generator
from noise2map.models.decoding import DecodingOptions
from noise2map.models.denoising.ensembles import DecoderEnsemble


def members(task="segmentation", count=3, **fields):
    models = [tiny_model(task, **fields).eval() for _ in range(count)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for part in (model.decoder, model.head):
            for value in part.parameters():
                value.data += 0.3 * torch.randn_like(value)
    return models


def features_of(model, batch=3):
    with torch.no_grad():
        return model.encode_image(torch.randn(batch, 3, 32, 48, generator=torch.Generator().manual_seed(5)))


@torch.no_grad()
def test_probabilities_are_averaged():
    models = members(diffusion=False)
    features = features_of(models[0])
    out = DecoderEnsemble(models).decode_map(features)
    mean = torch.stack([model.decode_map(features).logits.softmax(1) for model in models]).mean(0)
    assert torch.allclose(out.logits.softmax(1), mean, atol=1e-5)
    entropies = [-(p * p.log()).sum(1) for p in (model.decode_map(features).logits.softmax(1) for model in models)]
    disagreement = (-(mean * mean.log()).sum(1) - torch.stack(entropies).mean(0)) / torch.tensor(3.0).log()
    assert torch.allclose(out.uncertainties["mutual_information"], disagreement, atol=1e-4)
    assert out.num_steps.tolist() == [3, 3, 3]


@torch.no_grad()
def test_probabilities_of_layers_are_averaged():
    models = [tiny_bev.tiny_bev(diffusion=False) for _ in range(3)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for value in (*model.decoder.parameters(), *model.head.parameters()):
            value.data += 0.3 * torch.randn_like(value)
    features = models[0].encode_sensors(**tiny_bev.inputs(batch_size=2))
    out = DecoderEnsemble(models).decode_map(features)
    mean = torch.stack([model.decode_map(features).probabilities for model in models]).mean(0)
    assert torch.allclose(out.probabilities, mean, atol=1e-5) and out.num_steps.tolist() == [3, 3]


@torch.no_grad()
@pytest.mark.parametrize("average", ["last", "steps"])
def test_probabilities_of_layers_are_averaged_whatever_a_run_averages(average):
    models = [tiny_bev.tiny_bev() for _ in range(2)]
    models[1].head.classifier.weight.data += 0.5
    features = models[0].encode_sensors(**tiny_bev.inputs(batch_size=2))
    size = (2, 1, models[0].codec.channels, *features.shape[-2:])
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    mean = torch.stack([model.decode_map(features, 3, average=average, noise=noise).probabilities for model in models]).mean(0)
    out = DecoderEnsemble(models).decode_map(features, 3, average=average, noise=noise)
    assert torch.allclose(out.probabilities, mean, atol=1e-5) and float(out.probabilities.max()) > 0.5


@torch.no_grad()
def test_intervals_of_one_calibration_are_those_of_its_members():
    torch.manual_seed(0)
    config = tiny_config(min_depth=0.5, max_depth=10.0, diffusion=False, objective="laplace", depth_representation="log")
    config.calibration = {"temperature": 1.5, "levels": [0.5, 0.9], "radii": [2.0, 5.0]}
    model = Noise2MapForDepthEstimation(config).eval()
    features = features_of(model)
    alone, twice = model.decode_map(features).interval(0.9), DecoderEnsemble([model, model]).decode_map(features).interval(0.9)
    for one, other in zip(alone, twice):
        torch.testing.assert_close(one, other)
    different = copy.deepcopy(model)
    different.config.calibration = {"temperature": 1.0, "levels": [0.5, 0.9], "radii": [1.0, 3.0]}
    with pytest.raises(ValueError, match="member 2 is calibrated otherwise than the first, and its intervals are"):
        DecoderEnsemble([model, different])


@torch.no_grad()
def test_scales_follow_the_law_of_total_variance():
    torch.manual_seed(0)
    config = tiny_config(min_depth=0.5, max_depth=10.0, diffusion=False, objective="laplace", depth_representation="log")
    models = [Noise2MapForDepthEstimation(config).eval() for _ in range(2)]
    models[1].encoder.load_state_dict(models[0].encoder.state_dict())
    features = features_of(models[0])
    first, second = (model.decode_map(features) for model in models)
    out = DecoderEnsemble(models).decode_map(features)
    logs = torch.stack([first.predicted_depth, second.predicted_depth]).log()
    within = torch.stack([first.predicted_scale, second.predicted_scale]).square().mul(2).mean(0)
    assert torch.allclose(out.predicted_scale, ((within + logs.var(0, correction=0)) / 2).sqrt(), rtol=1e-4)
    assert torch.allclose(out.predicted_depth, torch.stack([first.predicted_depth, second.predicted_depth]).mean(0), rtol=1e-5)


@torch.no_grad()
def test_maps_do_not_depend_on_the_batch_and_samples_are_kept():
    models = members()
    ensemble, features = DecoderEnsemble(models), features_of(models[0])
    options = DecodingOptions(num_inference_steps=2, ensemble_size=2, seed=4)
    out = options.decode(ensemble, features, ["a", "b", "c"], output_samples=True)
    assert out.samples.shape[:2] == (3, 6)
    alone = options.decode(ensemble, features[1:2], ["b"], output_samples=True)
    assert torch.allclose(alone.samples[0], out.samples[1], atol=1e-4)
    first = models[0].decode_map(features[1:2], 2, 2, generator=[image_generator(4, "b")], output_samples=True)
    assert torch.allclose(out.samples[1, :2], first.samples[0], atol=1e-4)


def test_it_behaves_like_its_first_member():
    models = members()
    ensemble = DecoderEnsemble(models)
    assert ensemble.config is models[0].config and ensemble.task == "segmentation" and ensemble.to("cpu") is ensemble


def test_methods_of_a_module_change_all_members_and_leave_an_ensemble():
    ensemble = DecoderEnsemble(members(count=2))
    for name, answer in (("train", lambda one: one.training), ("eval", lambda one: not one.training)):
        assert getattr(ensemble, name)() is ensemble and all(answer(one) for one in ensemble.members)
    assert ensemble.double() is ensemble and {one.dtype for one in ensemble.members} == {torch.float64}


def test_other_encoders_and_classes_are_refused():
    models = members(count=2)
    with pytest.raises(ValueError, match="expected at least 2"):
        DecoderEnsemble(models[:1])
    with pytest.raises(ValueError, match="member 2 is a Noise2MapForDepthEstimation"):
        DecoderEnsemble([models[0], tiny_model("depth")])
    other = members(count=2)
    other[1].config.id2label = dict(enumerate(reversed(list(other[1].config.id2label.values()))))
    with pytest.raises(ValueError, match="member 2 has other classes than the first, or another order of them"):
        DecoderEnsemble(other)
    with torch.no_grad():
        models[1].encoder.merge.conv.weight.add_(1)
    with pytest.raises(ValueError, match="another encoder"):
        DecoderEnsemble([*members(count=2), models[1]])
    assert set(models[0].config.id2label.values()) == set(CLASSES.values())
