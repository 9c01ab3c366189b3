"""Matched filter, noise channels, one pass and fields: Bayes by brute force, invariances, gradients, refused combinations."""

import math

import pytest
import torch
from tiny_bev import inputs as bev_inputs
from tiny_bev import labels as bev_labels
from tiny_bev import tiny_bev
from tiny_models import images, tiny_config, tiny_depth_model, tiny_segmenter

from noise2map.diffusion import image_generator
from noise2map.diffusion.process import add_noise
from noise2map.models.decoding import PredictionOptions
from noise2map.models.denoising import decoder_input, draw_times

MATCHED = {"matched_filter": True, "map_encoding": "one_hot", "map_scale": 1.0, "time_difference": 0.0, "feedback": "mean"}
SAMPLES = {"noise_channels": 3, "time_difference": 0.0, "churn": 1.0, "sampling": "one_pass"}


def seeded(*names):
    return [image_generator(0, name) for name in names]


def labels(count=1, size=(64, 64), classes=3):
    return torch.randint(0, classes, (count, *size), generator=torch.Generator().manual_seed(1))


def matched(**fields):
    return tiny_segmenter(**(MATCHED | fields))


def pyramid(**fields):
    return matched(**({"map_pyramid_levels": 2, "map_scale": 0.3} | fields))


def energy(**fields):
    return tiny_segmenter(**(SAMPLES | {"objective": "energy", "map_encoding": "one_hot", "map_scale": 1.0} | fields))


def crps(**fields):
    return tiny_depth_model(**(SAMPLES | {"objective": "crps", "map_scale": 1.0, "depth_representation": "log"} | fields))


@torch.no_grad()
def test_matched_logits_are_the_posterior_of_independent_pixels():
    # With a network that answers with the prior whatever it sees, the softmax has to be Bayes' rule.
    model = matched(map_scale=0.7)
    prior = torch.linspace(0.1, 1.0, model.config.num_labels).softmax(0)
    model.head.classifier.weight.zero_()
    model.head.classifier.bias.copy_(prior.log())
    codes = model.codec.codes()[:-1]
    x_t = torch.randn(2, len(codes), 5, 6, generator=torch.Generator().manual_seed(0)) * 0.8
    features = torch.zeros(2, model.config.hidden_size, 5, 6)
    t = torch.tensor([0.6, 0.8])
    alpha, sigma = model.schedule.alpha_sigma(t)
    said = model.predict_at(model.decoder.prepare(features), x_t, t).softmax(1)
    for b in range(2):
        likelihood = torch.stack(
            [torch.distributions.Normal(alpha[b] * code.view(-1, 1, 1), sigma[b]).log_prob(x_t[b]).sum(0) for code in codes]
        )
        assert torch.allclose(said[b], (likelihood + prior.log().view(-1, 1, 1)).softmax(0), atol=1e-5)


@torch.no_grad()
def test_matched_layers_are_the_posterior_of_independent_layers():
    model = tiny_bev(matched_filter=True, map_encoding="one_hot", map_scale=0.5)
    model.head.classifier.weight.zero_()
    model.head.classifier.bias.fill_(math.log(0.2 / 0.8))
    x, y = model.config.feature_size
    x_t = torch.randn(1, model.config.num_labels, x, y, generator=torch.Generator().manual_seed(0)) * 0.5
    t = torch.tensor([0.7])
    alpha, sigma = model.schedule.alpha_sigma(t)
    said = model.evidence(x_t, alpha, sigma) + math.log(0.2 / 0.8)
    present = torch.distributions.Normal(alpha * 0.5, sigma).log_prob(x_t).exp() * 0.2
    absent = torch.distributions.Normal(-alpha * 0.5, sigma).log_prob(x_t).exp() * 0.8
    expected = torch.nn.functional.interpolate(present / (present + absent), said.shape[-2:], mode="nearest")
    assert torch.allclose(said.sigmoid(), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("make", (matched, pyramid, crps, energy))
def test_one_pass_knows_no_noise_and_a_run_does(make):
    model, pixels = make().eval(), images(1)
    one = [model(pixel_values=pixels, sampling="one_pass", generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert torch.equal(one[0].prediction, one[1].prediction)
    runs = [
        model(pixel_values=pixels, num_inference_steps=3, sampling="diffusion", generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    ]
    assert not torch.equal(runs[0].prediction, runs[1].prediction)


@torch.no_grad()
@pytest.mark.parametrize("make", (matched, pyramid, crps, energy))
@pytest.mark.parametrize("sampler", ("ddim", "ddpm", "dpmpp_2m"))
def test_three_images_give_what_each_gives_alone(make, sampler):
    model, pixels = make().eval(), images(3)
    dials = {"num_inference_steps": 3, "ensemble_size": 2, "sampling": "diffusion", "sampler": sampler, "output_samples": True}
    together = model(pixel_values=pixels, generator=seeded(*"abc"), **dials)
    assert together.samples.shape[:2] == (3, 2)
    for i in range(3):
        alone = model(pixel_values=pixels[i : i + 1], generator=seeded("abc"[i]), **dials)
        assert torch.allclose(together.samples[i], alone.samples[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", (matched, pyramid, crps, energy))
def test_gradients_reach_every_parameter_and_the_encoder_learns_from_the_first_call(make):
    model = make()
    target = (
        labels(2) if model.task == "segmentation" else torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(0)) * 9 + 1
    )
    model(pixel_values=images(2), labels=target, generator=seeded("a", "b")).loss.backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not silent
    of_all = model.encoder.get_parameter(next(name for name, _ in model.encoder.named_parameters())).grad.clone()
    model.zero_grad()
    features = model.encode_image(images(2))
    prediction = model.predict_at(
        model.decoder.prepare(features), torch.zeros(2, model.codec.channels, *features.shape[-2:]), torch.ones(2)
    )
    (model.loss(prediction, target) + model.auxiliary_loss(features, target)).backward()
    alone = model.encoder.get_parameter(next(name for name, _ in model.encoder.named_parameters())).grad
    assert torch.allclose(of_all, alone, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("make", (matched, energy))
def test_a_frozen_encoder_is_prepared_once_and_the_decoder_learns_the_same(make, monkeypatch):
    gradients, prepared = [], []
    for frozen in (False, True):
        model = make().train()
        model.encoder.requires_grad_(not frozen)
        original = type(model.decoder).prepare
        monkeypatch.setattr(model.decoder, "prepare", lambda x, m=model, f=original: prepared.append(m) or f(m.decoder, x))
        model(pixel_values=images(2), labels=labels(2), generator=seeded("a", "b")).loss.backward()
        gradients.append({name: one.grad for name, one in model.decoder.named_parameters()})
    assert [prepared.count(model) for model in dict.fromkeys(prepared)] == [2, 1]
    for name, one in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], one, rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
def test_a_pyramid_shows_means_of_squares_at_the_loudness_of_single_cells():
    model = pyramid()
    x0 = model.codec.encode(torch.zeros(1, 20, 24, dtype=torch.long))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for time in (0.3, 0.7, 0.99):
        t = torch.tensor([time])
        alpha, sigma = model.schedule.alpha_sigma(t)
        x_t = add_noise(x0, noise, alpha, sigma)
        cells, *means = decoder_input(model, x_t, t).split(x0.shape[1], 1)
        for side, shown in zip((3, 5), means, strict=True):
            half, (row, column) = side // 2, (9, 11)
            mean = x_t[:, :, row - half : row + half + 1, column - half : column + half + 1].mean((-1, -2))
            signal = (alpha * model.codec.scale * model.codec.relative_std * side) ** 2
            torch.testing.assert_close(shown[..., row, column], mean * side / (signal + sigma**2).sqrt())
            corner = x_t[:, :, : half + 1, : half + 1].mean((-1, -2))  # at the border, of the cells that there are
            torch.testing.assert_close(shown[..., 0, 0], corner * side / (signal + sigma**2).sqrt())
            if time == 0.99:  # hardly any signal: noise as loud as that of cells
                inner = shown[..., half:-half, half:-half]
                assert inner.std() == pytest.approx(cells.std().item(), rel=0.2)
    assert not decoder_input(model, x_t, torch.ones(1)).any()  # the first call is shown an empty map


@pytest.mark.parametrize("fields", ({"map_scale": 1.0}, {"map_scale": 0.2, "map_pyramid_levels": 3}))
def test_layers_train_with_a_matched_filter_and_gradients_reach_every_parameter(fields):
    model = tiny_bev(matched_filter=True, map_encoding="one_hot", **fields)
    model(
        **bev_inputs(), labels=bev_labels(shape=tuple(axis.count for axis in model.config.map_grid)), generator=seeded("a")
    ).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


@torch.no_grad()
def test_a_field_draws_maps_whose_mean_is_the_one_pass_marginal():
    model = matched(num_labels=3).eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(5)
    out = model.decode_map(model.encode_image(images(1)), sampling="field", ensemble_size=800, generator=seeded("a"))
    assert set(out.samples.unique().tolist()) == {0.0, -30.0}
    often = out.samples.softmax(2).mean(1)
    assert (often - out.logits.softmax(1)).abs().max() < 0.12  # five standard errors of 800 draws


@torch.no_grad()
@pytest.mark.parametrize("kind", ["matched", "crps"])
def test_a_field_denoised_leaves_the_marginals_alone_and_does_not_depend_on_the_batch(kind):
    model = {"matched": matched, "crps": crps}[kind]().eval()
    features = model.encode_image(images(3))
    chosen = {"sampling": "field", "ensemble_size": 2}
    once = model.decode_map(features, **chosen, generator=[seeded(name)[0] for name in "abc"])
    out = model.decode_map(features, **chosen, num_inference_steps=3, generator=[seeded(name)[0] for name in "abc"])
    assert out.num_steps.tolist() == [3, 3, 3] and once.num_steps.tolist() == [1, 1, 1]
    assert torch.equal(out.prediction, once.prediction) and out.samples.shape == once.samples.shape
    assert not torch.equal(out.samples, once.samples) and not torch.equal(out.samples[:, 0], out.samples[:, 1])
    for row, name in enumerate("abc"):
        alone = model.decode_map(features[row : row + 1], **chosen, num_inference_steps=3, generator=seeded(name))
        torch.testing.assert_close(out.samples[row : row + 1], alone.samples, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_field_is_kept_where_the_level_lets_it_be_read_and_forgotten_where_it_does_not():
    """The matched filter reads a map off little noise whatever the network says; of a map under much noise nothing is left."""
    agreement = []
    for level in (0.05, 0.999):
        model = matched(num_labels=3, field_level=level).eval()
        features = model.encode_image(images(1))
        drawn, denoised = (
            model.decode_map(
                features, sampling="field", ensemble_size=16, num_inference_steps=steps, generator=seeded("a")
            ).samples.argmax(2)
            for steps in (1, 2)
        )
        agreement.append((drawn == denoised).float().mean().item())
    assert agreement[0] > 0.999 and agreement[1] < 0.9


def test_several_steps_or_samples_of_a_one_pass_checkpoint_mean_diffusion():
    model = crps().eval()
    with torch.no_grad():
        assert model(pixel_values=images(1)).num_steps.tolist() == [1]
        assert model(pixel_values=images(1), num_inference_steps=4).num_steps.tolist() == [4]
    with pytest.raises(ValueError, match="takes 1 step"):
        model(pixel_values=images(1), num_inference_steps=2, sampling="one_pass")
    with pytest.raises(ValueError, match="has no samples"):
        model(pixel_values=images(1), ensemble_size=2, sampling="one_pass")
    with pytest.raises(ValueError, match="takes 1 step, or a number of them"):
        model(pixel_values=images(1), num_inference_steps="auto", sampling="field")
    with pytest.raises(ValueError, match="num_inference_steps is 3; further steps of sampling='field' denoise its samples"):
        PredictionOptions(sampling="field", num_inference_steps=3)
    with pytest.raises(ValueError, match="field_level is 1; expected a noise level between 0 and 1"):
        crps(field_level=1)


def test_times_of_training_lie_where_they_are_asked_for():
    generators = [image_generator(0, str(i)) for i in range(4000)]
    times = draw_times(tiny_config(time_sampling="logit_normal", time_mean=0.3, time_std=0.5), generators)
    inside = times[(times > 0.3) & (times < 0.85)]
    assert times.min() >= 0.02 and times.max() <= 0.99 and len(inside) > 0.8 * 4000
    assert times.median().item() == pytest.approx(torch.tensor(0.3).sigmoid().item(), abs=0.03)
    assert ((times < 0.1) | (times > 0.95)).float().mean() > 0.005  # the uniform tenth


@pytest.mark.parametrize(
    ("fields", "message"),
    (
        ({"matched_filter": True}, "needs fixed codes"),
        ({"map_pyramid_levels": 2}, "map_pyramid_levels is 2; expected 0 without matched_filter"),
        ({"map_pyramid_levels": -1}, "map_pyramid_levels is -1; expected 0 to 8"),
        ({"map_pyramid_levels": 9}, "map_pyramid_levels is 9; expected 0 to 8"),
        ({"matched_filter": True, "map_encoding": "one_hot", "self_aligned": True}, "self_aligned=False"),
        ({"noise_channels": 2}, "do not go together"),
        ({"objective": "crps"}, "do not go together"),
        ({"churn": 1.5}, "churn is 1.5"),
        ({"feedback": "sample"}, "feedback is 'sample'"),
    ),
)
def test_combinations_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


@torch.no_grad()
def test_the_decoder_is_shown_unit_variance_and_nothing_at_the_start():
    model = matched(map_scale=1.0)
    x0 = model.codec.encode(labels(1, (40, 40), model.config.num_labels))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    for time in (0.2, 0.7):
        t = torch.tensor([time])
        shown = decoder_input(model, add_noise(x0, noise, *model.schedule.alpha_sigma(t)), t)
        assert shown.square().mean().item() == pytest.approx(1, abs=0.05)
    assert not bool(decoder_input(model, noise, torch.ones(1)).any())


@torch.no_grad()
def test_the_smoothness_of_a_field_can_be_chosen_for_a_call():
    model = matched().eval()
    features = model.encode_image(images(1))

    def agreement(width):
        out = model.decode_map(features, sampling="field", ensemble_size=40, field_smoothness=width, generator=seeded("a"))
        maps = out.samples.argmax(2)
        return (maps[..., 1:] == maps[..., :-1]).float().mean().item()

    assert agreement(0.0) < agreement(1.0) < agreement(math.inf)
    assert agreement(None) == agreement(float(model.config.field_smoothness))
    with pytest.raises(ValueError, match="draws no field"):
        model.decode_map(features, sampling="one_pass", field_smoothness=1.0)
    with pytest.raises(ValueError, match="field_smoothness is -1"):
        model.decode_map(features, sampling="field", field_smoothness=-1.0)
