"""The segmentation model equals the public implementation number by number (Swin-T, ADE20K)."""

import functools

import pytest
import torch
from golden_reference import (
    MAP_SIZE,
    assert_close,
    assert_gradient_norms,
    class_labels,
    drawn,
    first_step_tolerance,
    image,
    numbers,
    official_weights,
    recorded,
    train_without_dropout,
)

from noise2map.convert import load_official_ddp
from noise2map.models.aggregation import ProbabilityAggregator, Softmax
from noise2map.models.kernels import deformable_attention
from noise2map.models.map_decoder import sine_position_encoding

pytestmark = pytest.mark.golden
CONFIG = "ddp_swin_t_2x8_512x512_160k_ade20k"
FORMULATIONS = ("gather", "embedding_bag", "grid_sample")


@pytest.fixture(scope="module")
def golden():
    return recorded("ddp_segmentation")


@pytest.fixture(scope="module")
def weights():
    return official_weights(CONFIG)


@pytest.fixture(scope="module")
def model(weights):
    return load_official_ddp(weights, "segmentation")


@pytest.fixture(scope="module")
def backbone_maps(model):
    with torch.no_grad():
        return list(model.encoder.backbone(image()).feature_maps)


@pytest.fixture(scope="module")
def features(model):
    with torch.no_grad():
        return model.encode_image(image())


def use_formulation(monkeypatch, formulation):
    """Makes "auto" attention take one formulation; returns the list of choices made."""
    chosen = []

    def choose(*_):
        chosen.append(formulation)
        return formulation

    monkeypatch.setattr(deformable_attention, "_choose", choose)
    return chosen


def test_inputs_are_the_recorded_ones(golden):
    assert torch.equal(image().flatten()[:8], golden["input.first8"])
    assert torch.equal(drawn(5678, 1, 256, *MAP_SIZE).flatten()[:8], golden["noise5678.first8"])
    assert torch.equal(class_labels().flatten()[4000:4064].int(), golden["gt.first64"])


def test_backbone(backbone_maps, golden):
    for i, maps in enumerate(backbone_maps):
        assert_close(maps[:, ::8, ::2, ::2], golden[f"backbone.{i}.c8_s2"], 1e-5)


def test_feature_pyramid_and_neck(model, backbone_maps, features, golden):
    with torch.no_grad():
        for i, maps in enumerate(model.encoder.pyramid(backbone_maps)):
            assert_close(maps[:, ::32], golden[f"fpn.{i}.c32"], 1.5e-5)
    assert_close(features[:, ::8, ::2, ::2], golden["neck.c8_s2"], 1.5e-5)


def test_position_encoding_and_reference_points(golden):
    encoding = sine_position_encoding(*MAP_SIZE, 256, torch.device("cpu"), torch.float32)
    assert_close(encoding.T.view(1, 256, *MAP_SIZE)[:, ::16, ::2, ::2], golden["posenc.c16_s2"], 1e-6)
    centres = (deformable_attention.pixel_grid(*MAP_SIZE) + 0.5) / torch.tensor([MAP_SIZE[1], MAP_SIZE[0]])
    assert_close(centres.view(1, -1, 1, 2)[:, ::16], golden["refpoints.q16"], 1e-6)


def test_noise_levels(model, golden):
    t = golden["sched.t"]
    # t = 1 is where the last bit of the cosine counts.
    assert_close(model.schedule.log_snr(t), golden["sched.cosine_log_snr"], first_step_tolerance(model.schedule, 1e-6))
    alpha, sigma = model.schedule.alpha_sigma(t)
    assert_close(alpha, golden["sched.cosine_alpha"], 1e-6)
    assert_close(sigma, golden["sched.cosine_sigma"], 1e-6)


def test_time_embedding(model, golden):
    level = model.schedule.log_snr(torch.tensor([0.7]))
    assert_close(level, golden["single.log_snr"], 1e-6)
    with torch.no_grad():
        assert_close(model.decoder.time_embedding.fourier(level), golden["single.fourier"], 1e-6)
        assert_close(model.decoder.time_embedding(level), golden["single.time_emb"], 3e-6)


def run_single_call(model, features):
    """One decoder call at t = 0.7; what went through its parts, by name."""
    seen, handles = {}, []

    def keep(name, value):
        seen[name] = value.detach()

    def watch(module, name, before=False):
        if before:
            handles.append(module.register_forward_pre_hook(lambda _m, args, _n=name: keep(_n, args[0])))
        else:
            handles.append(module.register_forward_hook(lambda _m, _a, out, _n=name: keep(_n, out)))

    watch(model.decoder.layers[0], "fused", before=True)
    watch(model.decoder.layers[0].attention_norm, "layer0_attn_out_with_identity", before=True)
    watch(model.decoder.layers[0].ffn_norm, "layer0_ffn_out_with_identity", before=True)
    for i, layer in enumerate(model.decoder.layers):
        watch(layer, f"layer{i}_out")
    with torch.no_grad():
        context = model.decoder.prepare(features)
        modulations = model.decoder.modulations(model.schedule.log_snr(torch.tensor([0.7])))
        tokens = model.decoder(context, drawn(5678, 1, model.codec.channels, *MAP_SIZE), modulations)
        seen["readout"] = model.head(tokens, context.size)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_single_call_and_every_layer(model, features, golden, formulation, monkeypatch):
    chosen = use_formulation(monkeypatch, formulation)
    seen = run_single_call(model, features)
    assert len(chosen) == 6
    fused = seen["fused"].transpose(1, 2).view(1, 256, *MAP_SIZE)
    assert_close(fused[:, ::32], golden["single.transform.c32"], 1e-5)
    for name in ("layer0_attn_out_with_identity", "layer0_ffn_out_with_identity", *(f"layer{i}_out" for i in range(6))):
        assert_close(seen[name].transpose(0, 1)[::8, :, ::8], golden[f"single.{name}.q8_c8"], 2e-5)
    assert_close(seen["readout"][:, ::10, ::2, ::2], golden["single.logits.c10_s2"], 3e-5)


# tag: steps, average, samples, sampler, scale
RUNS = {
    "ddim1_acc0": (1, "last", 1, "ddim", 0.01),
    "ddim1_acc1": (1, "steps", 1, "ddim", 0.01),
    "ddim3_acc0": (3, "last", 1, "ddim", 0.01),
    "ddim3_acc1": (3, "steps", 1, "ddim", 0.01),
    "ddim3_acc1_bs1": (3, "steps", 1, "ddim", 1.0),
    "ddim10_acc0": (10, "last", 1, "ddim", 0.01),
    "ddim10_acc1": (10, "steps", 1, "ddim", 0.01),
    "ddim3_acc0_rand2": (3, "last", 2, "ddim", 0.01),
    "ddim3_acc0_rand2_bs1": (3, "last", 2, "ddim", 1.0),
    "ddim3_acc1_rand2": (3, "steps", 2, "ddim", 0.01),
    "ddpm3_acc0": (3, "last", 1, "ddpm", 0.01),
    "ddpm3_acc0_bs1": (3, "last", 1, "ddpm", 1.0),
    "ddpm3_acc1": (3, "steps", 1, "ddpm", 0.01),
    "ddpm3_acc0_rand2": (3, "last", 2, "ddpm", 0.01),
}


def run(model, features, tag, scale):
    steps, _, samples, sampler, _ = RUNS[tag]
    usual, model.codec.scale = model.codec.scale, scale
    with torch.no_grad():
        out = model.decode_map(
            features,
            num_inference_steps=steps,
            average="last",
            ensemble_size=samples,
            sampler=sampler,
            noise=drawn(5678, samples, 256, *MAP_SIZE)[None],
            step_noise=lambda index, x: drawn(5679 + index, *x.shape),
            output_steps=True,
        )
    model.codec.scale = usual
    return out


@pytest.fixture(scope="module")
def runs(model, features):
    """Runs by tag, made when first asked for. Averaging reads the stream of steps, so it needs no run of its own."""

    @functools.cache
    def get(tag):
        return run(model, features, tag, RUNS[tag][4])

    return get


def run_behind(golden, tag):
    """The tag whose run the averaging of another tag reads."""
    return tag if RUNS[tag][1] == "last" or f"{tag}.argmax" in golden else tag.replace("_acc1", "_acc0")


def check_steps(steps, golden, tag):
    count, _, samples, _, scale = RUNS[tag]
    labels = torch.stack([step.readout.argmax(1) for step in steps])
    flips = (labels != golden[f"{tag}.argmax"]).sum(dim=(1, 2, 3))
    assert labels.shape == (count, samples, *MAP_SIZE)
    assert int(flips.max()) <= 1, f"class flips in each step: {flips.tolist()}"
    x_t = torch.stack([step.x_t for step in steps])[:, :, ::16, ::4, ::4]
    # A flipped class would move its pixel's code by up to 2 scales.
    assert_close(x_t, golden[f"{tag}.x_t.c16_s4"], 2e-6 if int(flips.sum()) == 0 else 2 * scale)
    assert [step.index for step in steps] == list(range(count))


@pytest.mark.parametrize("tag", RUNS)
def test_sampler(model, runs, golden, tag):
    steps, average, samples, _, _ = RUNS[tag]
    out = runs(run_behind(golden, tag))
    check_steps(out.steps, golden, run_behind(golden, tag))
    if average == "last":
        tolerance = first_step_tolerance(model.schedule, 1e-4) if steps == 1 else 3e-5
        assert_close(out.logits[:, ::10, ::2, ::2], golden[f"{tag}.out.c10_s2"], tolerance)
        return
    readout = ProbabilityAggregator(Softmax(), 1, samples, "steps")
    for step in out.steps:
        readout.update(step.readout, torch.ones(1, dtype=torch.bool))
    probabilities = readout.result()[0].exp()
    assert_close(probabilities[:, ::10, ::2, ::2], golden[f"{tag}.out.c10_s2"], first_step_tolerance(model.schedule, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_sampler_with_every_attention(model, features, golden, formulation, monkeypatch):
    chosen = use_formulation(monkeypatch, formulation)
    out = run(model, features, "ddim3_acc0_rand2_bs1", 1.0)
    check_steps(out.steps, golden, "ddim3_acc0_rand2_bs1")
    assert_close(out.logits[:, ::10, ::2, ::2], golden["ddim3_acc0_rand2_bs1.out.c10_s2"], 3e-5)
    assert len(chosen) == 3 * 6


def test_final_labels_at_image_size(model, golden):
    # The published defaults: 3 steps, averaged probabilities, one sample, resized as probabilities.
    assert (model.config.num_inference_steps, model.config.average, model.config.ensemble_size) == (3, "steps", 1)
    with torch.no_grad():
        out = model(pixel_values=image(), noise=drawn(5678, 1, 1, 256, *MAP_SIZE))
    assert_close(out.logits.exp()[:, ::25, ::3, ::3], golden["final_resized.c25_s3"], first_step_tolerance(model.schedule, 1e-5))
    assert int((out.logits.argmax(1) != golden["final_labels"]).sum()) <= 5


def train_once(weights, name):
    """One training step as recorded; the model, its output and what the decoder and the codec were given."""
    kind, scale = name.split("_bs")
    model = load_official_ddp(weights, "segmentation", self_aligned=kind == "SelfAlignedDDP", map_scale=float(scale))
    train_without_dropout(model)
    noisy, small_labels, auxiliary = [], [], []
    model.decoder.register_forward_pre_hook(lambda _module, args: noisy.append(args[1].detach()))
    model.auxiliary_head.register_forward_hook(lambda _module, _args, logits: auxiliary.append(logits.detach()))
    encode = model.codec.encode
    model.codec.encode = lambda target, *args: small_labels.append(target) or encode(target, *args)
    out = model(pixel_values=image(), labels=class_labels(), noise=drawn(999, 1, 256, *MAP_SIZE), timesteps=torch.tensor([0.35]))
    out.loss.backward()
    return model, out, noisy, small_labels, auxiliary[0]


def check_training(weights, golden, name):
    model, out, noisy, small_labels, auxiliary = train_once(weights, name)
    expected = numbers()["segmentation"]
    losses = expected["losses"][name]
    assert float(out.loss.detach()) == pytest.approx(losses["total"], rel=2e-6)
    upsampled = torch.nn.functional.interpolate(auxiliary, size=class_labels().shape[-2:], mode="bilinear")
    # Unknown pixels count in the mean: it is taken over all of them.
    per_pixel = torch.nn.functional.cross_entropy(upsampled, class_labels(), ignore_index=255, reduction="none")
    assert 0.4 * float(per_pixel.mean()) == pytest.approx(losses["auxiliary"], rel=1e-5)
    assert losses["decode"] + losses["auxiliary"] == pytest.approx(losses["total"], rel=1e-6)
    aligned = name.startswith("SelfAligned")
    assert len(noisy) == (2 if aligned else 1)
    # A class of the no-grad guess at t = 1 may sit on the fence.
    assert_close(noisy[-1][:, ::16, ::2, ::2], golden[f"train_{name}.noised_map.c16_s2"], 1e-6)
    if not aligned:
        assert torch.equal(small_labels[0].unsqueeze(1), golden["train.gt_down"].long())
    names = expected["gradient_norms"]["parameters"]
    assert_gradient_norms(model, expected["gradient_norms"][name], names)
    for ours, key, keep in (
        (model.head.classifier.weight, "conv_seg.weight", lambda g: g[::8]),
        (model.decoder.projection.weight, "transform.weight.s8", lambda g: g[::8, ::8, 0, 0]),
        (model.codec.embedding.weight, "embedding_table.s4", lambda g: g[:, ::16]),
    ):
        truth = golden[f"train_{name}.grad.{key}"]
        assert_close(keep(ours.grad), truth, 5e-3 * float(truth.abs().max()))
    return model, out


@pytest.mark.parametrize(
    "name", ["DDP_bs0.01", "DDP_bs1", pytest.param("SelfAlignedDDP_bs0.01", marks=pytest.mark.slow), "SelfAlignedDDP_bs1"]
)
def test_training_step(weights, golden, name):
    model, out = check_training(weights, golden, name)
    assert_close(model.auxiliary_head.norm.running_mean, golden["train_DDP.bn_running_mean_after"], 1e-5)
    assert_close(model.auxiliary_head.norm.running_var, golden["train_DDP.bn_running_var_after"], 1e-5)
    if name == "DDP_bs0.01":
        assert_close(out.logits[:, ::10, ::2, ::2], golden["train_DDP.logits.c10_s2"], 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_training_step_with_every_attention(weights, golden, formulation, monkeypatch):
    chosen = use_formulation(monkeypatch, formulation)
    check_training(weights, golden, "DDP_bs1")
    assert set(chosen) == {formulation}
