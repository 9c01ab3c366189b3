"""Equal to the published bird's-eye-view models: recorded numbers, see tests/golden/bev_README.md."""

import functools
import json

import numpy as np
import pytest
import torch
from golden_reference import GOLDEN, assert_close, drawn, gradient_norms, official_weight, train_without_dropout

from noise2map.convert import load_official_ddp
from noise2map.models import Noise2MapBevConfig
from noise2map.models.bev import CameraRig
from noise2map.models.bev.camera import LiftSplat, plan_pooling, pool
from noise2map.models.bev.lidar import voxelise

pytestmark = pytest.mark.golden
GEOMETRY = ("vtransform.dx", "vtransform.bx", "vtransform.nx", "vtransform.frustum")


@functools.cache
def recorded(name):
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"bev_{name}.npz").items()}


@functools.cache
def numbers():
    return json.loads((GOLDEN / "bev_numbers.json").read_text())


def weights(name):
    content = json.loads((GOLDEN / "bev_keys.json").read_text())
    number = content["models"].index(name)
    tensors = {}
    for key, shape, dtype, models in content["keys"]:
        if number not in models:
            continue
        if key.endswith(GEOMETRY):
            tensors[key] = torch.zeros(shape, dtype=getattr(torch, dtype))
        elif len(shape) == 5:  # sparse convolutions: the last axis is the output's
            scale = np.sqrt(np.prod(shape[1:])) / np.sqrt(np.prod(shape[:-1]))
            tensors[key] = official_weight(key, tuple(shape)) * np.float32(scale)
        else:
            tensors[key] = official_weight(key, tuple(shape))
    return tensors


@pytest.fixture(scope="module")
def camera_model():
    return load_official_ddp(weights("bev_camera"), "bev")


@pytest.fixture(scope="module")
@torch.no_grad()
def camera_run(camera_model):
    """One encoding of the images: what enters and leaves the lifting, and the features."""
    seen = {}
    lift = camera_model.encoder.camera.lift
    watch = lift.register_forward_hook(lambda module, inputs, output: seen.update(image_features=inputs[0], bev=output))
    features = camera_model.encode_image(images(), CameraRig.create(**matrices()))
    watch.remove()
    return {"features": features, **seen}


@pytest.fixture(scope="module")
def fusion_model():
    return load_official_ddp(weights("bev_fusion"), "bev")


def matrices(augmented=False):
    file, prefix = recorded("camera"), "mat_aug" if augmented else "mat"
    return {
        "intrinsics": file["mat.camera_intrinsics"],
        "camera_to_lidar": file["mat.camera2lidar"],
        "image_augmentation": file[f"{prefix}.img_aug_matrix"],
        "lidar_augmentation": file[f"{prefix}.lidar_aug_matrix"],
    }


def images():
    return drawn(1234, 1, 6, 3, 256, 704)


def masks():
    share = np.array([0.5, 0.1, 0.2, 0.05, 0.1, 0.15])[:, None, None]
    coarse = np.random.Generator(np.random.PCG64(42)).random((6, 40, 40)) < share
    return torch.from_numpy(coarse.repeat(5, 1).repeat(5, 2).astype(np.int64))[None]


def quarter(x):
    return x[..., ::8, ::8]


# ---- fast: geometry and voxels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmented", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_frustum_points_fall_into_the_published_cells(augmented):
    """A few of 1.8 million points lie so close to a border that the order of float32 operations decides."""
    torch.manual_seed(0)
    lift = LiftSplat(Noise2MapBevConfig())
    rig, suffix = CameraRig.create(**matrices(augmented)), "_aug" if augmented else ""
    points = rig.unproject(lift.frustum((32, 88)))
    assert_close(points[:, :, ::24, ::8, ::16], recorded("camera")[f"geometry{suffix}"], 2e-5)
    counts = lift.plan(rig, (32, 88)).counts()[0]
    expected = recorded("camera")[f"cell_count{suffix}"].int()
    assert (counts != expected).sum() <= 50 and abs(int(counts.sum()) - int(expected.sum())) <= 20
    if not augmented:
        assert int(expected.sum()) == 1_772_415  # rounding down instead of truncating would keep 1,602,766


def recorded_plan():
    """Frustum points in the recorded cells: the few on a border, which another processor's rounding moves, are put back."""
    lift = LiftSplat(Noise2MapBevConfig())
    frustum = CameraRig.create(**matrices()).unproject(lift.frustum((32, 88)))[0]
    points = frustum.view(-1, 3)
    axes = lift.grid[:2]
    lower, step = (torch.tensor([getattr(axis, name) for axis in axes]) for name in ("lower", "step"))
    plan = plan_pooling(frustum, lift.grid)
    surplus = plan.counts()[0] - recorded("camera")["cell_count"].int()
    offsets = plan.offsets.tolist()
    for cell in (surplus > 0).nonzero().tolist():
        number = cell[0] * axes[1].count + cell[1]
        members = plan.point[offsets[number] : offsets[number + 1]].long()
        for axis, side in ((0, -1), (0, 1), (1, -1), (1, 1)):
            other = list(cell)
            other[axis] += side
            if surplus[tuple(other)] < 0:
                border = cell[axis] + (side + 1) // 2
                distance = ((points[members, axis] - lower[axis]) / step[axis] - border).abs()
                assert distance.min() < 1e-4, "the nearest point is not on the border"
                points[members[distance.argmin()], axis] = lower[axis] + step[axis] * (border + 1e-3 * side)
    plan = plan_pooling(frustum, lift.grid)
    assert torch.equal(plan.counts()[0], recorded("camera")["cell_count"].int())
    return plan


def test_voxels_are_the_published_ones():
    config, file = Noise2MapBevConfig(sensors=["lidar"]), recorded("fusion")
    lower = (config.x_bounds[0], config.y_bounds[0], config.point_z_bounds[0])
    means, index = voxelise(file["points"], lower, config.voxel_size, config.voxel_shape, 10, 120_000)
    assert len(means) == 23_162
    assert torch.equal(index[::40], file["voxel_index"].long())
    assert_close(means[::40], file["voxel_features"], 1e-5)


# ---- slow: the whole models --------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_camera_encoder(camera_model, camera_run):
    file, camera = recorded("camera"), camera_model.encoder.camera
    rig, features = CameraRig.create(**matrices()), camera_run["image_features"]
    assert_close(features[0, :, ::32, ::8, ::8], file["neck"], 2e-5)
    depth, context = camera.lift.lift(features[0])
    assert_close(depth[:, ::20, ::8, ::8], file["depth"], 1e-6)
    pooled = pool(camera.lift.plan(rig, (32, 88)), depth, context)
    assert_close(pooled[None, ::16, ::8, ::8], file["pooled"], 2e-3)
    assert_close(quarter(camera_run["bev"])[:, ::16], file["bev_camera"], 2e-3)
    assert_close(quarter(camera_run["features"])[:, ::32], file["decoder"], 1e-4)
    alone = camera_model.encoder.decoder(drawn(2468, 1, 80, 128, 128).abs())
    assert_close(quarter(alone)[:, ::32], file["decoder_alone"], 1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_head_and_sampler_on_given_features(camera_model):
    file, features = recorded("camera"), drawn(1357, 1, 256, 128, 128)
    with torch.no_grad():
        assert_close(quarter(decoder_call(camera_model, features)), file["head_alone_logits"], 2e-4)
    out = camera_model.decode_map(features, 3, 1, noise=drawn(5678, 1, 256, 128, 128)[None])
    assert_close(quarter(out.logits.exp()), file["head_alone_ddim3_rand1"], 1e-4)


def decoder_call(model, features):
    """Logits of one call at t = 0.7."""
    context = model.decoder.prepare(features)
    modulations = model.decoder.modulations(model.schedule.log_snr(torch.tensor([0.7])))
    return model.head(model.decoder(context, drawn(5678, 1, 256, 128, 128), modulations), context.size)


@pytest.mark.slow
@torch.no_grad()  # a graph of three steps would take 16 GB
def test_camera_model_from_images_to_maps(camera_model, camera_run, monkeypatch):
    """Steps and samples at the scale at which the map that is fed back can be seen; 0.01 is tested on given features."""
    file, features = recorded("camera"), camera_run["features"]
    assert_close(quarter(decoder_call(camera_model, features)), file["single_logits"], 5e-4)
    monkeypatch.setattr(camera_model.codec, "scale", 1.0)
    out = camera_model.decode_map(features, 3, 2, noise=drawn(5678, 2, 256, 128, 128)[None])
    assert_close(quarter(out.probabilities), file["ddim3_rand2_bs1"], 1e-3)


@pytest.mark.slow
@torch.no_grad()
def test_layers_that_are_not_told_the_time():
    model = load_official_ddp(weights("bev_camera_stock_layers"), "bev")
    logits = decoder_call(model, drawn(1357, 1, 256, 128, 128))
    assert_close(quarter(logits), recorded("camera")["stock_head_alone_logits"], 2e-4)


def train_step(model, lidar=False, dtype=torch.float32):
    train_without_dropout(model)
    plan = recorded_plan()
    model.encoder.camera.lift.plan = lambda rig, size: plan
    sensors = {"pixel_values": images(), **matrices()}
    sensors = {name: tensor.to(dtype) for name, tensor in sensors.items()}
    if lidar:
        sensors["points"] = [recorded("fusion")["points"].to(dtype)]
    noise, timesteps = drawn(999, 1, 256, 128, 128).to(dtype), torch.tensor([0.35], dtype=dtype)
    out = model(labels=masks(), noise=noise, timesteps=timesteps, **sensors)
    out.loss.backward()
    return out.loss.item()


def exact_gradients(expected):
    """The recorded norms that are more than noise."""
    # Biases that a batch normalisation takes away again: the gradient is 0.
    exact = {key for key in expected if not (key.startswith("encoders.camera.backbone.norm") and key.endswith(".bias"))}
    # Constants of the geometry are parameters without a gradient there and no parameters here.
    constants = {f"encoders.camera.vtransform.{name}" for name in ("dx", "bx", "nx", "frustum")}
    assert {key for key in exact if expected[key] is None} <= constants
    return {key: expected[key] for key in exact - constants}


def check_gradients(ours, expected, tolerance):
    assert expected.keys() <= ours.keys()
    for key, norm in expected.items():
        assert abs(ours[key] - norm) <= tolerance(key) * norm + 1e-7, f"{key}: {ours[key]} instead of {norm}"


@pytest.mark.slow
def test_camera_training_step():
    """The loss, and gradients down to the images' backbone; through it they flow in `test_fusion_training_step`, more closely."""
    model = load_official_ddp(weights("bev_camera"), "bev")
    model.encoder.camera.backbone.requires_grad_(False)
    loss = train_step(model)
    assert loss == pytest.approx(sum(numbers()["camera_losses"]), rel=1e-4)
    expected = exact_gradients(numbers()["camera_gradients"])
    trained = {key: norm for key, norm in expected.items() if not key.startswith("encoders.camera.backbone.")}
    assert len(expected) > len(trained) > 100
    check_gradients(gradient_norms(model), trained, lambda key: 5e-3)


@pytest.mark.slow
@torch.no_grad()
def test_fusion_encoder_parts(fusion_model):
    file, encoder = recorded("fusion"), fusion_model.encoder
    bev = encoder.lidar([file["points"]])
    assert_close(quarter(bev)[:, ::16], file["bev_lidar"], 1e-4)
    assert_close(bev.sum(1)[0, ::2, ::2], file["lidar_sum"], 1e-3)
    fused = encoder.fuser(torch.cat([drawn(2468, 1, 80, 128, 128).abs(), drawn(2469, 1, 256, 128, 128).abs()], dim=1))
    assert_close(quarter(encoder.decoder(fused))[:, ::32], file["decoder_alone"], 1e-4)


@pytest.mark.slow
@torch.no_grad()  # a graph of three steps would take 16 GB
def test_fusion_model_from_sensors_to_maps(fusion_model):
    file = recorded("fusion")
    features = fusion_model.encode_image(images(), CameraRig.create(**matrices()), [file["points"]]).detach()
    with torch.no_grad():
        assert_close(quarter(decoder_call(fusion_model, features)), file["single_logits"], 5e-4)
    out = fusion_model.decode_map(features, 1, 1, noise=drawn(5678, 1, 256, 128, 128)[None])
    assert_close(quarter(out.probabilities), file["ddim1_rand1"], 1e-3)


@pytest.mark.slow
def test_fusion_training_step():
    """Against the recorded float32 run as far as that is exact, and against float64 more closely (tests/golden/bev_README.md)."""
    file, float64 = recorded("fusion"), recorded("float64")
    model = load_official_ddp(weights("bev_fusion"), "bev")
    loss = train_step(model, lidar=True)
    assert loss == pytest.approx(1.2832949, rel=1e-4)
    assert loss == pytest.approx(float(float64["loss"]), rel=1e-5)
    official, ours = exact_gradients(numbers()["fusion_gradients"]), gradient_norms(model)
    exact = dict(zip(sorted(official), float64["norms"].tolist(), strict=True))
    # No rounding of the features' gradients reaches the map decoder. Before it, float32 differs from float64 by up to 0.21 %.
    check_gradients(ours, exact, lambda key: 5e-3 if key.startswith(("encoders.", "fuser.", "decoder.")) else 1e-3)
    # The recorded norms are up to 2.5 % from float64, by the batch statistics of that run: each is allowed its own error.
    check_gradients(ours, official, lambda key: 5e-3 + abs(exact[key] / official[key] - 1))
    deviations = np.array([abs(ours[key] / official[key] - 1) for key in official])
    assert np.median(deviations) < 1e-3 and np.quantile(deviations, 0.9) < 4e-3 and deviations.max() < 0.03
    lidar = model.encoder.lidar
    for name, norm in (("conv_input.1", lidar.conv_input[1]), ("conv_out.1", lidar.conv_out[1])):
        for part in ("mean", "var"):
            expected = file[f"train.encoders.lidar.backbone.{name}.running_{part}_after"]
            assert_close(getattr(norm, f"running_{part}"), expected, 1e-3 * float(expected.abs().max()))
    gradient, exact_gradient = lidar.conv_input[0].weight.grad, float64["lidar_conv_input_grad"]
    assert_close(gradient, exact_gradient, 5e-3 * float(exact_gradient.abs().max()))
    assert_close(gradient, file["lidar_conv_input_grad"], 0.025 * float(exact_gradient.abs().max()))
