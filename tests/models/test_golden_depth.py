"""The depth model equals the public implementation number by number (Swin-T, KITTI)."""

import pytest
import torch
from golden_reference import (
    MAP_SIZE,
    assert_close,
    assert_gradient_norms,
    depth_labels,
    drawn,
    first_step_tolerance,
    image,
    numbers,
    official_weights,
    recorded,
    train_without_dropout,
)

from noise2map.convert import load_official_ddp

pytestmark = pytest.mark.golden
CONFIG = "ddp_swint_1k_w7_kitti_bs2x8_scale01"


@pytest.fixture(scope="module")
def golden():
    return recorded("ddp_depth")


@pytest.fixture(scope="module")
def weights():
    return official_weights(CONFIG)


@pytest.fixture(scope="module")
def model(weights):
    return load_official_ddp(weights, "depth")


@pytest.fixture(scope="module")
def clamped_model(weights):
    """Encodes depths up to 2 m at scale 1, so that the clamp of the update acts."""
    return load_official_ddp(weights, "depth", map_scale=1.0, sample_max_depth=2.0)


@pytest.fixture(scope="module")
def features(model):
    with torch.no_grad():
        return model.encode_image(image())


def test_published_settings(model):
    config = model.config
    assert (config.map_scale, config.time_input, config.num_inference_steps) == (0.1, "time", 3)
    assert (config.min_depth, config.max_depth) == (1e-3, 80.0)
    assert torch.equal(depth_labels().flatten()[4000:4064], recorded("ddp_depth")["gt.first64"])


def test_encoder(model, features, golden):
    with torch.no_grad():
        backbone = list(model.encoder.backbone(image()).feature_maps)
        assert_close(backbone[3][:, ::8], golden["backbone.3.c8"], 1e-5)
        for i, maps in enumerate(model.encoder.pyramid(backbone)):
            assert_close(maps[:, ::32], golden[f"fpn.{i}.c32"], 1.5e-5)
    assert_close(features[:, ::16, ::2, ::2], golden["neck.c16_s2"], 1.5e-5)


def test_signal_level_is_not_clamped(model, golden):
    alpha, sigma = model.schedule.alpha_sigma(golden["sched.t"])
    assert_close(alpha**2, golden["sched.gamma"], 1e-6)
    assert_close(sigma**2, 1 - golden["sched.gamma"], 1e-6)
    assert float(sigma[0]) < 4e-4 < 1e-5**0.5  # the clamp would keep it at 3.2e-3


def test_single_call_and_every_layer(model, features, golden):
    outputs = {}
    handles = [
        layer.register_forward_hook(lambda _m, _a, out, _i=i: outputs.__setitem__(_i, out))
        for i, layer in enumerate(model.decoder.layers)
    ]
    fused = []
    handles.append(model.decoder.layers[0].register_forward_pre_hook(lambda _m, args: fused.append(args[0])))
    with torch.no_grad():
        time = torch.tensor([0.7])
        assert_close(model.decoder.time_embedding.fourier(time), golden["single.fourier"], 1e-6)
        assert_close(model.decoder.time_embedding(time), golden["single.time_emb"], 3e-6)
        context = model.decoder.prepare(features)
        tokens = model.decoder(context, drawn(5678, 1, 1, *MAP_SIZE), model.decoder.modulations(time))
        depth_m = model.head(tokens, context.size)
    for handle in handles:
        handle.remove()
    assert_close(fused[0].transpose(1, 2).view(1, 256, *MAP_SIZE)[:, ::32], golden["single.down.c32"], 1e-5)
    for i in range(6):
        assert_close(outputs[i].transpose(0, 1)[::8, :, ::8], golden[f"single.layer{i}_out.q8_c8"], 2e-5)
    assert_close(depth_m, golden["single.depth"], 3e-5)


RUNS = {
    "ddim1": (1, 1),
    "ddim3": (3, 1),
    "ddim10": (10, 1),
    "ddim3_rand2": (3, 2),
    "ddim3_bs1_max2": (3, 1),
    "ddim3_rand2_bs1_max2": (3, 2),
}


@pytest.mark.parametrize("tag", RUNS)
def test_sampler(model, clamped_model, features, golden, tag):
    steps, samples = RUNS[tag]
    sampled = clamped_model if tag.endswith("max2") else model
    with torch.no_grad():
        out = sampled.decode_map(
            features,
            num_inference_steps=steps,
            ensemble_size=samples,
            noise=drawn(5678, samples, 1, *MAP_SIZE)[None],
            output_steps=True,
        )
    assert_close(out.predicted_depth.unsqueeze(1), golden[f"{tag}.out"], 3e-5)
    assert_close(torch.stack([s.readout for s in out.steps])[..., ::2, ::2], golden[f"{tag}.pred_per_step.s2"], 3e-5)
    assert_close(torch.stack([s.x_t for s in out.steps])[..., ::2, ::2], golden[f"{tag}.x_t.s2"], first_step_tolerance_of(sampled))
    if tag.endswith("max2"):
        # Without the clamp signals would leave [-1, 1]: the case is worth its name.
        assert max(float(step.readout.max()) for step in out.steps) > 2.0
        assert max(float(step.x0.abs().max()) for step in out.steps) == 1.0


def first_step_tolerance_of(model):
    return max(3e-5, first_step_tolerance(model.schedule, 3e-5) / 100)


def test_final_depth_at_image_size(model, golden):
    with torch.no_grad():
        out = model(pixel_values=image(), noise=drawn(5678, 1, 1, 1, *MAP_SIZE))
    assert_close(out.predicted_depth[:, None, ::2, ::2], golden["final_depth.s2"], 3e-5)


@pytest.mark.parametrize("scale", ["0.1", "1"])
def test_training_step(weights, golden, scale):
    model = load_official_ddp(weights, "depth", map_scale=float(scale), depth_noising="bilinear")
    train_without_dropout(model)
    noisy = []
    model.decoder.register_forward_pre_hook(lambda _module, args: noisy.append(args[1].detach()))
    out = model(pixel_values=image(), labels=depth_labels(), noise=drawn(999, 1, 1, *MAP_SIZE), timesteps=torch.tensor([0.35]))
    out.loss.backward()
    expected, name = numbers()["depth"], f"bs{scale}"
    assert float(out.loss.detach()) == pytest.approx(expected["losses"][name]["total"], rel=2e-6)
    assert_close(noisy[0], golden[f"train_{name}.noised_map"], 2e-6)
    assert_close(out.predicted_depth.unsqueeze(1), golden[f"train_{name}.pred"], 3e-5)
    assert_gradient_norms(model, expected["gradient_norms"][name], expected["gradient_norms"]["parameters"])
    projection = model.decoder.projection.weight.grad[:, :, 0, 0]
    for ours, key in (
        (model.head.regressor.weight.grad, "conv_depth.weight"),
        (projection[::8, ::8], "down.weight.s8"),
        (projection[:, 256], "down.weight.last_input_channel"),
    ):
        truth = golden[f"train_{name}.grad.{key}"]
        assert_close(ours, truth, 5e-3 * float(truth.abs().max()))


def test_layers_that_are_not_told_the_time(weights):
    """The published depth code leaves the time conditioning out by accident; its weights load and give its loss."""
    stock = {key: value for key, value in weights.items() if ".time_mlp." not in key}
    assert len(stock) < len(weights)
    model = train_without_dropout(load_official_ddp(stock, "depth", depth_noising="bilinear"))
    assert not model.config.time_conditioning
    with torch.no_grad():
        out = model(pixel_values=image(), labels=depth_labels(), noise=drawn(999, 1, 1, *MAP_SIZE), timesteps=torch.tensor([0.35]))
    assert float(out.loss) == pytest.approx(numbers()["depth"]["stock_layers_loss"], rel=1e-6)
    # The embedding of time stays in the published state dict, unused, and is reported as dropped.
    assert {key for key in model.conversion_report.dropped if "time_mlp" in key} == {
        f"time_mlp.{part}" for part in ("0.weights", "1.weight", "1.bias", "3.weight", "3.bias")
    }
