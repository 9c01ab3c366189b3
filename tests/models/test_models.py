"""The map models as wholes: gradients, saving and loading, sizes, half precision, impossible input."""

import math

import pytest
import torch
from tiny_models import BACKBONES, class_map, depth_map, images, tiny_depth_model, tiny_segmenter

from noise2map.models import Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation

MODELS = {
    "class_embedding": lambda **kw: tiny_segmenter(**kw),
    "one_hot": lambda **kw: tiny_segmenter(map_encoding="one_hot", **kw),
    "analog_bits": lambda **kw: tiny_segmenter(map_encoding="analog_bits", **kw),
    "linear_schedule": lambda **kw: tiny_segmenter(noise_schedule="linear", **kw),
    "self_aligned": lambda **kw: tiny_segmenter(self_aligned=True, **kw),
    "l2": lambda **kw: tiny_segmenter(objective="l2", **kw),
    "no_auxiliary_head": lambda **kw: tiny_segmenter(use_auxiliary_head=False, **kw),
    "no_diffusion": lambda **kw: tiny_segmenter(diffusion=False, **kw),
    "no_time": lambda **kw: tiny_segmenter(time_conditioning=False, **kw),
    "time_input": lambda **kw: tiny_segmenter(time_input="time", **kw),
    "depth_linear": lambda **kw: tiny_depth_model(**kw),
    "depth_log": lambda **kw: tiny_depth_model(depth_representation="log", **kw),
    "depth_bilinear": lambda **kw: tiny_depth_model(depth_noising="bilinear", min_inverse_snr=0.0, **kw),
    "depth_self_aligned": lambda **kw: tiny_depth_model(self_aligned=True, **kw),
    "depth_l2": lambda **kw: tiny_depth_model(objective="l2", **kw),
    "depth_linear_schedule": lambda **kw: tiny_depth_model(noise_schedule="linear", **kw),
    "depth_laplace": lambda **kw: tiny_depth_model(objective="laplace", **kw),
    "depth_laplace_mixture": lambda **kw: tiny_depth_model(objective="laplace_mixture", **kw),
    "depth_no_diffusion": lambda **kw: tiny_depth_model(diffusion=False, **kw),
    **{f"{name}_backbone": (lambda _name=name, **kw: tiny_segmenter(_name, **kw)) for name in BACKBONES if name != "convnext"},
}


def target(model, *size):
    return class_map(*size) if isinstance(model, Noise2MapForSemanticSegmentation) else depth_map(*size)


def prediction(out):
    return out.logits if "logits" in out else out.predicted_depth


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name):
    model = MODELS[name]().train()
    if name.startswith("depth"):  # the head's relu must not start out dead
        torch.nn.init.constant_(model.head.regressor.bias, 1.0)
    out = model(pixel_values=images(2), labels=target(model, 2), generator=generators(0, 1))
    assert out.loss.ndim == 0
    assert math.isfinite(float(out.loss.detach()))
    out.loss.backward()
    learnt = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in learnt.items() if p.grad is None] == []
    assert [n for n, p in learnt.items() if not bool(torch.isfinite(p.grad).all())] == []
    nonzero = sum(bool(p.grad.any()) for p in learnt.values()) / len(learnt)
    assert nonzero > 0.9
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    # Without diffusion nothing is encoded; nothing else may be frozen.
    assert frozen == ({"codec.embedding.weight"} if name == "no_diffusion" else set())


def settings(config):
    """What a configuration says of the model, without where it came from."""
    fields = {**config.to_dict(), "backbone_config": config.backbone_config.to_dict()}
    for level in (fields, fields["backbone_config"]):
        for name in ("_name_or_path", "dtype", "architectures"):
            level.pop(name, None)
    return fields


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_model_is_the_same(name, tmp_path):
    model = MODELS[name](seed=3)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    assert settings(loaded.config) == settings(model.config)
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    ours, theirs = (m(pixel_values=images(), generator=torch.Generator().manual_seed(0)) for m in (model, loaded))
    # Where the weights lie in memory may change the last bit.
    assert torch.allclose(prediction(ours), prediction(theirs), atol=1e-5)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "hiera"])
@pytest.mark.parametrize("size", [(33, 47), (70, 61), (32, 100)])
def test_any_image_size(backbone, size):
    model = tiny_segmenter(backbone)
    with torch.no_grad():
        out = model(pixel_values=images(1, *size), generator=torch.Generator().manual_seed(0))
    assert out.logits.shape == (1, 5, *size)
    assert out.uncertainty.shape == (1, *size)
    loss = model(pixel_values=images(2, *size), labels=class_map(2, *size), generator=generators(0, 1)).loss
    assert math.isfinite(float(loss.detach()))


def test_fixed_size_backbone_says_so():
    model = tiny_segmenter("hiera")
    assert model(pixel_values=images()).logits.shape == (1, 5, 64, 64)
    with pytest.raises(ValueError, match=r"\(70, 61\) pixels .* this backbone takes \(64, 64\)"):
        model(pixel_values=images(1, 70, 61))


@pytest.mark.parametrize("make", [tiny_segmenter, tiny_depth_model])
def test_bfloat16_is_close_to_float32(make):
    model = make()
    noise = torch.randn(1, 1, model.codec.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(pixel_values=images(), noise=noise)
        half = model.to(torch.bfloat16)(pixel_values=images(), noise=noise)
    assert prediction(half).dtype == torch.float32  # logits and metres are never rounded to 8 bits
    if "logits" in full:
        error = (full.logits.softmax(1) - half.logits.softmax(1)).abs().max()
        assert float(error) < 0.05
        assert float((full.logits.argmax(1) == half.logits.argmax(1)).float().mean()) > 0.9
    else:
        assert torch.allclose(full.predicted_depth, half.predicted_depth, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("make", [tiny_segmenter, tiny_depth_model])
def test_bfloat16_trains(make):
    model = make().train().to(torch.bfloat16)
    noise = torch.randn(2, model.codec.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    loss = model(pixel_values=images(2), labels=target(model, 2), noise=noise, timesteps=torch.tensor([0.2, 0.8])).loss
    loss.backward()
    full = make().train()
    reference = full(pixel_values=images(2), labels=target(full, 2), noise=noise, timesteps=torch.tensor([0.2, 0.8])).loss
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=0.03)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_double_precision_stays_double():
    model = tiny_segmenter().double()
    with torch.no_grad():
        assert model(pixel_values=images()).logits.dtype == torch.float64


@pytest.mark.parametrize("make", [tiny_segmenter, tiny_depth_model])
def test_a_few_steps_of_training_lower_the_loss(make):
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(15):
        loss = model(pixel_values=images(2), labels=target(model, 2), generator=generators(step, step + 100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])


def test_training_noise_comes_from_the_generator():
    model = tiny_segmenter()

    def loss(*seeds):
        return float(model(pixel_values=images(2), labels=class_map(2), generator=generators(*seeds)).loss.detach())

    assert loss(0, 1) == loss(0, 1)
    assert loss(0, 1) != loss(1, 0)
    one = torch.Generator().manual_seed(0)
    assert math.isfinite(float(model(pixel_values=images(2), labels=class_map(2), generator=one).loss.detach()))


@pytest.mark.parametrize("make", [tiny_segmenter, tiny_depth_model])
def test_training_batch_is_the_mean_of_its_images(make):
    """Each image has its own time and noise, whatever the batch (batch norm of the auxiliary head aside)."""
    model = make(use_auxiliary_head=False, depth_representation="log")
    labels = target(model, 3)
    x_t = []
    model.decoder.register_forward_pre_hook(lambda _module, args: x_t.append(args[1].detach()))
    with torch.no_grad():
        model(pixel_values=images(3), labels=labels, generator=generators(0, 1, 2))
        for i in range(3):
            model(pixel_values=images(3)[i : i + 1], labels=labels[i : i + 1], generator=generators(i))
    assert torch.allclose(x_t[0], torch.cat(x_t[1:]), atol=1e-6)


def test_unknown_pixels_do_not_count_when_the_loss_is_averaged_over_the_known():
    images_, labels = images(), class_map()
    kwargs = {"noise": torch.zeros(1, 16, 16, 16), "timesteps": torch.tensor([0.5])}
    all_pixels = tiny_segmenter(use_auxiliary_head=False)(pixel_values=images_, labels=labels, **kwargs).loss
    valid = tiny_segmenter(use_auxiliary_head=False, loss_average="valid")(pixel_values=images_, labels=labels, **kwargs).loss
    share = float((labels != 255).float().mean())
    assert float(valid.detach()) * share == pytest.approx(float(all_pixels.detach()), rel=1e-5)


def test_masked_noising_leaves_holes_out_and_bilinear_noising_mixes_them_in():
    depth_m = torch.full((1, 64, 64), 10.0)
    depth_m[:, :8, :8] = 0  # four cells without any valid pixel
    depth_m[:, 32:34, 32:] = 0  # half of each cell in a row
    expected = (10 - 0.5) / 19.5 * 2 - 1
    masked = tiny_depth_model(map_scale=1.0).encode_labels(depth_m, (16, 16))
    known = torch.ones(16, 16, dtype=torch.bool)
    known[:2, :2] = False
    assert masked.shape == (1, 1, 16, 16)
    assert torch.allclose(masked[0, 0][known], torch.tensor(expected))
    assert bool((masked[0, 0][~known] == 0).all())
    bilinear = tiny_depth_model(map_scale=1.0, depth_noising="bilinear").encode_labels(depth_m, (16, 16))
    assert float(bilinear[0, 0, 0, 0]) == pytest.approx((0 - 0.5) / 19.5 * 2 - 1)  # as published: 0 m, and no clamp
    assert float(bilinear[0, 0, 8, 12]) < expected - 0.3
    assert torch.allclose(bilinear[0, 0, 12:], torch.tensor(expected))


def test_features_of_other_images_are_refused():
    model = tiny_segmenter()
    with torch.no_grad():
        features = model.encode_image(images(2))
        assert model(pixel_values=images(2), features=features).logits.shape[0] == 2
        for pixels in (images(3), images(2, 96, 64)):
            with pytest.raises(ValueError, match=r"features have shape \(2, 16, 16, 16\); expected those of the images"):
                model(pixel_values=pixels, features=features)


# ---- impossible input ------------------------------------------------------------------------------------------------------


def refuses(match, model, **kwargs):
    encoded = []
    handle = model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    with pytest.raises(ValueError, match=match):
        model(**{"pixel_values": images(2), **kwargs})
    handle.remove()
    return not encoded


@pytest.mark.parametrize("bad", [5, 254, -1, 256])
def test_class_ids_out_of_range_are_found_wherever_they_are(bad):
    labels = class_map(2)
    labels[1, 33, 35] = bad  # not on the grid of every fourth pixel that is encoded
    for model in (tiny_segmenter(), tiny_segmenter(diffusion=False)):
        before_heavy_work = refuses(rf"class id {bad}; expected 0\.\.4 or 255", model, labels=labels)
        assert before_heavy_work


def test_labels_that_cannot_be():
    model, depth_model = tiny_segmenter(), tiny_depth_model()
    assert refuses(r"labels have shape \(2, 32, 32\); expected \(2, 64, 64\)", model, labels=class_map(2)[:, ::2, ::2])
    assert refuses(r"labels have shape \(1, 64, 64\)", depth_model, labels=depth_map(1))
    assert refuses("expected integer class ids", model, labels=depth_map(2))
    assert refuses("expected floating point metres", depth_model, labels=class_map(2))
    for bad in (math.nan, math.inf, -1.0):
        labels = depth_map(2)
        labels[0, 40, 40] = bad
        assert refuses("1 impossible values", depth_model, labels=labels)


def test_labels_of_small_integer_types():
    model = tiny_segmenter()
    kwargs = {"noise": torch.zeros(1, 16, 16, 16), "timesteps": torch.tensor([0.5])}
    expected = model(pixel_values=images(), labels=class_map(), **kwargs).loss
    assert torch.equal(model(pixel_values=images(), labels=class_map().to(torch.uint8), **kwargs).loss, expected)


def test_images_that_cannot_be():
    model = tiny_segmenter()
    for pixel_values, match in (
        (torch.zeros(3, 64, 64), r"shape \(3, 64, 64\); expected \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 64, 64), r"shape \(1, 4, 64, 64\)"),
        (torch.zeros(0, 3, 64, 64), "at least one image"),
        (torch.zeros(1, 3, 31, 64), "64x31 pixels; expected at least 32x32"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8; expected normalised floating point"),
    ):
        with pytest.raises(ValueError, match=match):
            model(pixel_values=pixel_values)
    with pytest.raises(ValueError, match=r"shape \(3, 64, 64\); expected \(B, 3, H, W\)"):
        model(pixel_values=torch.zeros(3, 64, 64), labels=class_map())


def test_noise_and_times_that_cannot_be():
    model, labels = tiny_segmenter(), class_map(2)
    noise = torch.zeros(2, 1, 16, 16, 16)
    refuses(r"\(2, 16, 16, 16\); expected \(B, R, C, h, w\) = \(2, 1, 16, 16, 16\)", model, noise=noise[:, 0])
    refuses(r"noise has shape \(1, 1, 16, 16, 16\)", model, noise=noise[:1])
    refuses(r"= \(2, 4, 16, 16, 16\)", model, noise=noise, ensemble_size=4)
    refuses("NaN or infinite", model, noise=noise * math.nan)
    refuses(r"\(2, 1, 16, 16, 16\); expected .* \(2, 16, 16, 16\)", model, labels=labels, noise=noise)
    refuses(r"timesteps have shape \(3,\); expected \(2,\)", model, labels=labels, timesteps=torch.zeros(3))
    refuses(r"timesteps have shape \(\)", model, labels=labels, timesteps=torch.tensor(0.5))
    for time in (-0.1, 1.1, math.nan):
        refuses(r"expected times in \[0, 1\]", model, labels=labels, timesteps=torch.tensor([0.5, time]))
    refuses("got 3 generators", model, generator=generators(0, 1, 2))
    refuses("generator is 7; expected a torch.Generator", model, generator=7)
    fresh = tiny_segmenter()  # of the same seed: what was refused has left nothing behind
    assert torch.equal(*(one.eval()(pixel_values=images(2), generator=generators(0, 1)).logits for one in (model, fresh)))


def test_keywords_that_do_not_exist():
    model = tiny_segmenter()
    assert refuses("Noise2MapForSemanticSegmentation has no argument 'num_steps'", model, num_steps=3)
    model(pixel_values=images(), return_dict=True)


def test_models_do_not_mistake_each_others_checkpoints(tmp_path):
    tiny_segmenter().save_pretrained(tmp_path)
    assert Noise2MapForSemanticSegmentation.from_pretrained(tmp_path).config.architectures == ["Noise2MapForSemanticSegmentation"]
    _, info = Noise2MapForDepthEstimation.from_pretrained(tmp_path, output_loading_info=True, ignore_mismatched_sizes=True)
    assert info["missing_keys"]


@pytest.mark.parametrize("scale", [0.01, 0.5, 2.0])
def test_l2_objective_is_the_mean_squared_error_of_the_signal_in_units_of_its_scale(scale):
    """With one-hot codes the signal of a pixel is ``scale (2 p - 1)``, so in units of the scale the error is ``2 (p - truth)``."""
    model = tiny_segmenter(objective="l2", map_encoding="one_hot", map_scale=scale, use_auxiliary_head=False)
    labels = class_map().clamp(max=4)  # no unknown pixels
    noise = torch.randn(1, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    out = model(pixel_values=images(), labels=labels, noise=noise, timesteps=torch.tensor([0.4]))
    chances = out.logits.double().softmax(1)
    truth = torch.zeros_like(chances)
    for y in range(16):
        for x in range(16):
            truth[0, int(labels[0, 4 * y, 4 * x]), y, x] = 1
    assert float(out.loss.detach()) == pytest.approx(float((4 * (chances.detach() - truth).square()).mean()), rel=1e-4)
