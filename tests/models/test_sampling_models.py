"""Sampling dials of the map models: batch invariance, steps, samples, averaging, early stopping, encode once."""

import copy
import math

import pytest
import torch
from tiny_models import images, tiny_depth_model, tiny_segmenter

from noise2map.diffusion import image_generator
from noise2map.models.resizing import resize_map


def loud(model):
    """Larger answers, so that steps and samples disagree."""
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(8)
        model.decoder.projection.weight[:, model.config.hidden_size :].mul_(4)
    return model


@pytest.fixture(scope="module")
def segmenter():
    return loud(tiny_segmenter(map_scale=1.0))


@pytest.fixture(scope="module")
def depth_model():
    return loud(tiny_depth_model(map_scale=1.0, depth_representation="log"))


@pytest.fixture(scope="module", params=["segmentation", "depth"])
def model(request, segmenter, depth_model):
    return segmenter if request.param == "segmentation" else depth_model


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def features(model, count=1):
    return model.encode_image(images(count))


def prediction(out):
    return out.logits if "logits" in out else out.predicted_depth


def seeded(*names):
    return [image_generator(0, name) for name in names]


def assert_batch_invariance(model, pixel_values, tolerance, **dials):
    together = model(pixel_values=pixel_values, generator=seeded(*"abc"), **dials)
    alone = [model(pixel_values=pixel_values[i : i + 1], generator=seeded("abc"[i]), **dials) for i in range(3)]
    order = [2, 0, 1]
    mixed = model(pixel_values=pixel_values[order], generator=seeded(*"cab"), **dials)
    for i in range(3):
        for other, j in ((alone[i], 0), (mixed, order.index(i))):
            assert torch.allclose(prediction(together)[i], prediction(other)[j], atol=tolerance, rtol=tolerance)
            assert together.num_steps[i] == other.num_steps[j]
            assert set(together.uncertainties) == set(other.uncertainties)
            for kind, value in together.uncertainties.items():
                assert torch.allclose(value[i], other.uncertainties[kind][j], atol=tolerance), kind


@pytest.mark.parametrize("steps", [1, 3, "auto"])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_batch_of_three_is_three_batches_of_one_in_any_order(model, steps, samples, sampler):
    # In double precision, because feedback amplifies the rounding by which batch sizes differ.
    dials = {"num_inference_steps": steps, "ensemble_size": samples, "sampler": sampler, "average": "steps"}
    assert_batch_invariance(copy.deepcopy(model).double(), images(3).double(), 1e-6, **dials)


@pytest.mark.parametrize("make", [tiny_segmenter, tiny_depth_model])
def test_batch_invariance_in_single_precision(make):
    assert_batch_invariance(make(), images(3), 1e-4, num_inference_steps=3, ensemble_size=2)


def test_seeds_matter_and_repeat(model):
    first, again, other = (
        prediction(model(pixel_values=images(), num_inference_steps=1, generator=seeded(name))) for name in ("a", "a", "b")
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_single_generator_gives_each_image_its_own_noise(segmenter):
    same_twice = images().expand(2, -1, -1, -1)
    out = segmenter(pixel_values=same_twice, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(out.logits[0], out.logits[1], atol=1e-3)


def test_given_noise_is_the_start(model):
    f = features(model, 2)
    noise = torch.randn(2, 3, model.codec.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    out = model.decode_map(f, ensemble_size=3, noise=noise, output_steps=True)
    assert torch.equal(out.steps[0].x_t, noise.flatten(0, 1))
    drawn = model.decode_map(f, ensemble_size=3, generator=seeded("a", "b"), output_steps=True).steps[0].x_t
    expected = torch.stack([torch.randn(3, model.codec.channels, 16, 16, generator=g) for g in seeded("a", "b")])
    assert torch.equal(drawn, expected.flatten(0, 1))


def test_samples_are_reduced_and_images_are_not(segmenter):
    """The result of R samples is their mean for each image: the (B, R) axes are not mixed up."""
    f = features(segmenter, 2)
    noise = torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    out = segmenter.decode_map(f, num_inference_steps=2, ensemble_size=3, noise=noise)
    for b in range(2):
        members = [
            segmenter.decode_map(f[b : b + 1], num_inference_steps=2, noise=noise[b : b + 1, r : r + 1]).logits for r in range(3)
        ]
        assert torch.allclose(out.logits[b], torch.cat(members).mean(0), atol=1e-4)
        assert not torch.allclose(members[0], members[1], atol=1e-2)
    assert out.logits.shape == (2, 5, 16, 16)


@pytest.mark.parametrize("samples", [1, 2])
def test_average_over_steps_is_the_mean_of_probabilities(segmenter, samples):
    out = segmenter.decode_map(
        features(segmenter, 2),
        num_inference_steps=4,
        ensemble_size=samples,
        average="steps",
        generator=seeded("a", "b"),
        output_steps=True,
    )
    probabilities = torch.stack([step.prediction.softmax(1).unflatten(0, (2, samples)) for step in out.steps])
    by_hand = probabilities.mean(dim=(0, 2)).log()
    assert torch.allclose(out.logits, by_hand, atol=1e-5)
    assert torch.allclose(out.logits.exp().sum(1), torch.ones(2, 16, 16), atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("average", ["last", "steps"])
def test_depth_averages(depth_model, samples, average):
    out = depth_model.decode_map(
        features(depth_model),
        num_inference_steps=4,
        ensemble_size=samples,
        average=average,
        generator=seeded("a"),
        output_steps=True,
    )
    depths = torch.stack([step.prediction for step in out.steps]).squeeze(2)  # (steps, samples, h, w)
    by_hand = depths[-1].mean(0) if average == "last" else depths.mean(dim=(0, 1))
    assert torch.allclose(out.predicted_depth[0], by_hand, rtol=1e-5)


def test_image_size_output_is_the_resized_map(segmenter, depth_model):
    dials = {"num_inference_steps": 2}
    for average in ("last", "steps"):
        small = segmenter.decode_map(features(segmenter), average=average, generator=seeded("a"), **dials).logits
        large = segmenter(pixel_values=images(), average=average, generator=seeded("a"), **dials).logits
        if average == "last":
            assert torch.equal(large, resize_map(small, (64, 64)))
        else:  # probabilities are resized as probabilities
            assert torch.allclose(large.exp(), resize_map(small.exp(), (64, 64)), atol=1e-6)
    small = depth_model.decode_map(features(depth_model), generator=seeded("a"), **dials).predicted_depth
    large = depth_model(pixel_values=images(), generator=seeded("a"), **dials).predicted_depth
    assert torch.allclose(large, resize_map(small.clamp(0.5, 20)[:, None], (64, 64))[:, 0], rtol=1e-5)
    assert 0.5 <= float(large.min()) < float(large.max()) <= 20


def test_defaults_are_the_configurations():
    model = tiny_segmenter(num_inference_steps=2, ensemble_size=3, average="steps", sampler="ddpm")
    f = features(model)
    default = model.decode_map(f, generator=seeded("a"), output_steps=True)
    explicit = model.decode_map(
        f, num_inference_steps=2, ensemble_size=3, average="steps", sampler="ddpm", generator=seeded("a"), output_steps=True
    )
    assert torch.equal(default.logits, explicit.logits)
    assert len(default.steps) == 2
    assert default.steps[0].x_t.shape[0] == 3
    plain = model.decode_map(f, num_inference_steps=2, ensemble_size=3, average="steps", sampler="ddim", generator=seeded("a"))
    assert not torch.equal(default.logits, plain.logits)
    assert model.decode_map(f).steps is None


def test_injected_noise_of_the_ancestral_sampler(segmenter):
    f, calls = features(segmenter), []

    def step_noise(index, x):
        calls.append(index)
        return torch.zeros_like(x)

    out = segmenter.decode_map(f, num_inference_steps=4, sampler="ddpm", generator=seeded("a"), step_noise=step_noise)
    assert calls == [0, 1]  # t_next is 0.5, 0.25, 0, 0: a clean map gets no noise
    drawn = segmenter.decode_map(f, num_inference_steps=4, sampler="ddpm", generator=seeded("a"))
    assert not torch.equal(out.logits, drawn.logits)


# ---- encode once -----------------------------------------------------------------------------------------------------------


def test_the_image_is_encoded_once(model):
    calls = {"encoder": 0, "prepare": 0, "decoder": 0, "modulations": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    handles = [model.encoder.register_forward_hook(count("encoder")), model.decoder.register_forward_hook(count("decoder"))]
    prepare, modulations = model.decoder.prepare, model.decoder.modulations
    model.decoder.prepare = lambda *args: count("prepare")() or prepare(*args)
    model.decoder.modulations = lambda *args: count("modulations")() or modulations(*args)
    try:
        model(pixel_values=images(2), num_inference_steps=5, ensemble_size=2, generator=seeded("a", "b"))
        assert calls == {"encoder": 1, "prepare": 1, "decoder": 5, "modulations": 1}
        f = model.encode_image(images(2))
        for steps in (1, 3, 10):
            model.decode_map(f, num_inference_steps=steps)
        assert calls["encoder"] == 2
    finally:
        for handle in handles:
            handle.remove()
        del model.decoder.prepare, model.decoder.modulations


# ---- early stopping --------------------------------------------------------------------------------------------------------


def test_auto_stops_each_image_when_its_map_rests(segmenter):
    """Against brute force: the full run of every image, and the first step at which too few of its pixels changed."""
    config = segmenter.config
    f, names = features(segmenter, 6), "abcdef"
    before = config.auto_threshold
    full = segmenter.decode_map(f, num_inference_steps=config.auto_max_steps, generator=seeded(*names), output_steps=True)
    labels = torch.stack([step.prediction.argmax(1) for step in full.steps])  # (10, B, h, w)
    changes = (labels[1:] != labels[:-1]).flatten(2).float().mean(2)  # (9, B)
    try:
        # A threshold between the images' changes at the second step, so that they stop at different times.
        config.auto_threshold = float(changes[0].median()) + 1e-4
        out = segmenter.decode_map(f, num_inference_steps="auto", generator=seeded(*names), average="steps")
        last = segmenter.decode_map(f, num_inference_steps="auto", generator=seeded(*names), output_steps=True)
    finally:
        threshold, config.auto_threshold = config.auto_threshold, before
    for b in range(6):
        rests = [i for i in range(9) if float(changes[i, b]) < threshold]
        expected = rests[0] + 2 if rests else config.auto_max_steps
        assert int(out.num_steps[b]) == int(last.num_steps[b]) == expected
        assert torch.allclose(last.logits[b], full.steps[expected - 1].readout[b], atol=1e-3)
        mean = torch.stack([step.prediction[b].softmax(0) for step in full.steps[:expected]]).mean(0)
        assert torch.allclose(out.logits[b].exp(), mean, atol=1e-4)
        flips = (labels[1:expected, b] != labels[: expected - 1, b]).float().mean(0)
        assert torch.allclose(out.uncertainties["step_flip"][b], flips, atol=1e-6)
    assert len(set(out.num_steps.tolist())) > 1
    assert len(last.steps) == int(last.num_steps.max())  # nobody is decoded once all have stopped


def test_auto_needs_two_steps_to_see_that_nothing_changes():
    model = tiny_segmenter()
    with torch.no_grad():
        model.decoder.projection.weight[:, 16:] = 0  # deaf to the noisy map
        for layer in model.decoder.layers:
            layer.time.weight.zero_()  # and to the time
    out = model.decode_map(features(model, 2), num_inference_steps="auto", ensemble_size=2)
    assert out.num_steps.tolist() == [2, 2]
    assert float(out.uncertainties["step_flip"].max()) == 0


def test_auto_waits_until_the_map_can_be_read():
    """A scale of 0.01 takes 9.2 off the log ratio: a limit of -9.2 is where signal and noise of the cosine are equal, t = 1/2."""
    limit = 2 * math.log(0.01) - 1e-3
    model = tiny_segmenter(auto_threshold=0.99, auto_log_snr=limit, time_difference=0)
    out = model.decode_map(features(model, 2), num_inference_steps="auto", generator=seeded("a", "b"))
    assert out.num_steps.tolist() == [6, 6]  # t = 1, 0.9, ..., 0.5
    model.config.auto_log_snr = None
    assert model.decode_map(features(model, 2), num_inference_steps="auto", generator=seeded("a", "b")).num_steps.tolist() == [2, 2]


def test_auto_never_takes_more_than_the_most(segmenter):
    before = segmenter.config.auto_threshold, segmenter.config.auto_max_steps
    try:
        segmenter.config.auto_threshold, segmenter.config.auto_max_steps = 0.0, 4
        assert segmenter.decode_map(features(segmenter, 2), num_inference_steps="auto").num_steps.tolist() == [4, 4]
    finally:
        segmenter.config.auto_threshold, segmenter.config.auto_max_steps = before


def test_images_that_stopped_are_not_decoded_again(segmenter):
    rows = []
    handle = segmenter.decoder.register_forward_pre_hook(lambda _module, args: rows.append(args[1].shape[0]))
    before = segmenter.config.auto_threshold
    try:
        segmenter.config.auto_threshold = 0.2
        out = segmenter.decode_map(features(segmenter, 6), num_inference_steps="auto", ensemble_size=2, generator=seeded(*"abcdef"))
    finally:
        handle.remove()
        segmenter.config.auto_threshold = before
    assert rows == [2 * int((out.num_steps > i).sum()) for i in range(int(out.num_steps.max()))]


def test_fixed_steps_are_reported(model):
    out = model.decode_map(features(model, 2), num_inference_steps=3)
    assert out.num_steps.tolist() == [3, 3]


# ---- the model without diffusion -------------------------------------------------------------------------------------------


def test_without_diffusion_there_is_one_call_on_an_empty_map():
    model = tiny_segmenter(diffusion=False)
    maps = []
    model.decoder.register_forward_pre_hook(lambda _module, args: maps.append(args[1]))
    first = model(pixel_values=images(2))
    assert torch.equal(first.logits, model(pixel_values=images(2), num_inference_steps=1).logits)
    assert torch.equal(first.logits, model(pixel_values=images(2), num_inference_steps="auto", generator=seeded("a", "b")).logits)
    assert all(not bool(x.any()) for x in maps)
    assert len(maps) == 3
    assert first.num_steps.tolist() == [1, 1]
    for dials in ({"num_inference_steps": 3}, {"ensemble_size": 2}, {"num_inference_steps": True}):
        with pytest.raises(ValueError, match=r"trained without diffusion|num_inference_steps is True"):
            model(pixel_values=images(), **dials)


# ---- impossible dials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dials", "match"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; expected an integer from 1 to 1000 or 'auto'"),
        ({"num_inference_steps": -2}, "num_inference_steps is -2"),
        ({"num_inference_steps": "abc"}, "num_inference_steps is 'abc'"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": 3.0}, "num_inference_steps is 3.0"),
        ({"ensemble_size": 0}, "ensemble_size is 0; expected an integer from 1 to 1000"),
        ({"ensemble_size": -1}, "ensemble_size is -1"),
        ({"ensemble_size": 1.5}, "ensemble_size is 1.5"),
        ({"ensemble_size": True}, "ensemble_size is True"),
        ({"ensemble_size": "2"}, "ensemble_size is '2'"),
        ({"average": "median"}, "average is 'median'; expected one of 'last', 'steps'"),
        ({"sampler": "euler"}, "sampler is 'euler'; expected one of 'ddim', 'ddpm'"),
    ],
)
def test_impossible_dials(model, dials, match):
    calls, given = [], features(model)
    handles = [part.register_forward_hook(lambda *_: calls.append(1)) for part in (model.encoder, model.decoder)]
    try:
        with pytest.raises(ValueError, match=match):
            model(pixel_values=images(), **dials)
        with pytest.raises(ValueError, match=match):
            model.decode_map(given, **dials)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == []


def test_steps_below_the_floor_of_the_schedule_have_no_width():
    """The finest noise of the Karras grid of a small map lies where the signal-to-noise ratio no longer rises."""
    model = tiny_segmenter(sampler="dpmpp_2m", time_grid="karras", map_scale=0.01)
    for steps in (12, 13, 20):
        assert (
            model(pixel_values=images(), num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
            .logits.isfinite()
            .all()
        )


def test_features_that_are_none(model):
    for shape in ((1, 17, 16, 16), (16, 16, 16)):
        with pytest.raises(ValueError, match=r"features have shape .*expected \(B, 16, h, w\), from encode_image"):
            model.decode_map(torch.zeros(shape))


def test_steps_hold_what_was_said(model):
    out = model.decode_map(features(model, 2), num_inference_steps=3, ensemble_size=2, output_steps=True)
    assert [(round(s.t, 6), round(s.t_next, 6)) for s in out.steps] == [(1, 0.333333), (0.666667, 0), (0.333333, 0)]
    for step in out.steps:
        assert step.x_t.shape == step.x0.shape == (4, model.codec.channels, 16, 16)
        assert torch.equal(step.x0, model.codec.encode_prediction(step.prediction))
        assert math.isclose(float(step.x0.abs().max()), 1, abs_tol=1) and bool(torch.isfinite(step.prediction).all())
