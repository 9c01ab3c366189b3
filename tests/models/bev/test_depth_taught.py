"""LiDAR teaches cameras depth in training: true depths, the loss, what a model then needs, exact geometry under autocast."""

import math

import pytest
import torch
from tiny_bev import CAMERAS, IMAGE_SIZE, generators, inputs, labels, tiny_bev, tiny_config
from torch.nn import functional

from noise2map.models.bev import CameraRig, Noise2MapForBevSegmentation
from noise2map.models.bev.camera import nearest_depths, plan_pooling

SIZE = (4, 8)  # of the features of `IMAGE_SIZE`


def turned_rig(batch_size=2):
    """The rig of `inputs`, images resized and cut, the scene turned by 40 degrees and shifted."""
    batch = inputs(("camera",), batch_size)
    image = torch.eye(4).repeat(batch_size, CAMERAS, 1, 1)
    image[..., 0, 0], image[..., 1, 1], image[..., 0, 3] = 1.1, 1.1, -3.0
    scene = torch.eye(4).repeat(batch_size, 1, 1)
    cos, sin = math.cos(math.radians(40)), math.sin(math.radians(40))
    scene[:, :2, :2] = torch.tensor([[cos, sin], [-sin, cos]])
    scene[:, :3, 3] = torch.tensor([0.3, -0.2, 0.1])
    return CameraRig.create(batch["intrinsics"], batch["camera_to_lidar"], image, scene)


def taught_inputs():
    """Images and points of two samples, the points of the key frame."""
    batch = inputs(("camera", "lidar"), 2)
    for cloud in batch["points"]:
        cloud[:, 4] = 0
    return batch


def clouds(counts=(300, 200), seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([7.0, 7.0, 2.0, 100.0])
    parts = [(torch.rand(count, 4, generator=generator) * 2 - 1) * spread for count in counts]
    return [torch.cat([part, (torch.arange(len(part)) % 3 == 0).float()[:, None] * 0.1], dim=1) for part in parts]


def test_the_depth_of_a_pixel_is_that_of_the_nearest_point_in_it():
    """Worked out point by point, with plain pinhole arithmetic."""
    rig, points = turned_rig(), clouds()
    found = nearest_depths(rig, points, SIZE, IMAGE_SIZE)
    assert found.shape == (2, CAMERAS, *SIZE)
    expected = torch.zeros(2, CAMERAS, *SIZE)
    for b, cloud in enumerate(points):
        for camera in range(CAMERAS):
            pose = (rig.lidar_augmentation[b] @ rig.camera_to_lidar[b, camera]).double().inverse()
            for x, y, z, _, age in cloud.tolist():
                ahead = pose @ torch.tensor([x, y, z, 1.0], dtype=torch.float64)
                depth = float(ahead[2])
                if age > 0 or depth <= 0:
                    continue
                u, v = (30 * float(ahead[0]) / depth + 32) * 1.1 - 3, (30 * float(ahead[1]) / depth + 16) * 1.1
                row, column = round(v * 3 / (IMAGE_SIZE[0] - 1)), round(u * 7 / (IMAGE_SIZE[1] - 1))
                if 0 <= row < 4 and 0 <= column < 8:
                    before = float(expected[b, camera, row, column])
                    expected[b, camera, row, column] = depth if before == 0 else min(before, depth)
    assert 0.1 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_points_of_the_frustum_have_the_depth_they_were_lifted_to():
    lift, rig = tiny_bev().encoder.camera.lift, turned_rig(1)
    frustum = lift.frustum(SIZE)  # (D, h, w, 3)
    for camera in range(CAMERAS):
        points = rig.unproject(frustum[2])[0, camera].flatten(0, 1)
        assert torch.allclose(nearest_depths(rig, [points], SIZE, IMAGE_SIZE)[0, camera], torch.full(SIZE, 3.0), atol=1e-4)


def test_the_loss_is_the_mean_surprise_at_the_measured_depths():
    """The network's depths are one distribution for all pixels, by its bias: bins of 1 to 8 m."""
    lift, rig, points = tiny_bev().encoder.camera.lift, turned_rig(), clouds()
    chance = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.1])
    with torch.no_grad():
        lift.depthnet.weight.zero_()
        lift.depthnet.bias[:8] = chance.log()
    features = torch.randn(2, CAMERAS, 8, *SIZE)
    points[0][:, :2] *= 2
    depths = nearest_depths(rig, points, SIZE, IMAGE_SIZE).flatten().tolist()
    bins = [round(depth) - 1 for depth in depths if 0.5 < depth < 8.5]
    expected = sum(-math.log(chance[one]) for one in bins) / len(bins)
    assert 0 < sum(1 for depth in depths if 0 < depth < 0.5 or depth > 8.5) < len(bins)  # some are not lifted and do not count
    assert lift.depth_loss(features, rig, points).item() == pytest.approx(expected, rel=1e-5)
    behind = [torch.tensor([[0.0, -5.0, 0.0]])] * 2
    ahead = CameraRig.create(rig.intrinsics[:, :1], rig.camera_to_lidar[:, :1])
    assert lift.depth_loss(features[:, :1], ahead, behind) == 0


@pytest.mark.parametrize("sensors", [("camera",), ("camera", "lidar")])
def test_training_adds_the_weighted_loss_and_nothing_else_needs_points(sensors):
    batch = taught_inputs()
    losses, gradients = {}, {}
    for weight in (0, 0.5):
        model = tiny_bev(sensors, depth_loss_weight=weight).train()
        given = {name: value for name, value in batch.items() if name != "points" or weight or "lidar" in sensors}
        losses[weight] = model(**given, labels=labels(2), generator=generators(2)).loss
        losses[weight].backward()
        gradients[weight] = model.encoder.camera.lift.depthnet.weight.grad.clone()
    rig = CameraRig.create(batch["intrinsics"], batch["camera_to_lidar"])
    images = model.encoder.camera.image_features(batch["pixel_values"])
    depth_loss = model.encoder.camera.lift.depth_loss(images, rig, batch["points"])
    assert depth_loss > 0.5
    assert losses[0.5].item() == pytest.approx(losses[0].item() + 0.5 * depth_loss.item(), rel=1e-5)
    assert not torch.allclose(gradients[0], gradients[0.5])
    model.eval()
    if sensors == ("camera",):
        del batch["points"]
    assert torch.isfinite(model(**batch, labels=labels(2), generator=generators(2)).loss)
    assert model(**batch).probabilities.shape == (2, 6, 12, 16)


def test_depths_are_learnt():
    """Two places, 120 steps: the loss of depth falls far below that of not knowing."""
    batch, model = taught_inputs(), tiny_bev(depth_loss_weight=1.0).train()
    rig = CameraRig.create(batch["intrinsics"], batch["camera_to_lidar"])
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model(**batch, labels=labels(2), generator=generators(2)).loss.backward()
        optimizer.step()
    with torch.no_grad():
        images = model.encoder.camera.image_features(batch["pixel_values"])
        learnt = model.encoder.camera.lift.depth_loss(images, rig, batch["points"])
    assert 0 < learnt < 0.7 * math.log(8)


def test_the_weight_is_kept_and_points_are_demanded(tmp_path):
    model = tiny_bev(depth_loss_weight=0.25).train()
    model.save_pretrained(tmp_path)
    loaded = Noise2MapForBevSegmentation.from_pretrained(tmp_path)
    assert loaded.config.depth_loss_weight == 0.25 and loaded.config.training_sensors == ("camera", "lidar")
    assert tiny_config(("camera", "lidar"), depth_loss_weight=1).training_sensors == ("camera", "lidar")
    assert tiny_config().training_sensors == ("camera",)
    with pytest.raises(ValueError, match="points missing: with depth_loss_weight above 0, training needs images and LiDAR points"):
        model(**inputs(), labels=labels())
    both = inputs(("camera", "lidar"), 2)
    with pytest.raises(ValueError, match="points are those of 1 samples, pixel_values of 2"):
        model(**{**both, "points": both["points"][:1]}, labels=labels(2))
    with pytest.raises(ValueError, match="this model has no lidar branch"):
        model.eval()(**both, labels=labels(2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth_loss_weight": -1}, "depth_loss_weight is -1; expected 0 or more"),
        ({"depth_loss_weight": float("nan")}, "depth_loss_weight is nan; expected 0 or more"),
        ({"sensors": ("lidar",), "depth_loss_weight": 1.0}, "depth_loss_weight is 1.0 without a camera to teach; expected 0"),
    ],
)
def test_weights_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_geometry_is_exact_under_autocast():
    """Training runs under bfloat16: points of the frustum must fall into the cells they fall into at inference."""
    model, rig = tiny_bev(), turned_rig(1)
    lift = model.encoder.camera.lift
    frustum = lift.frustum(SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        points, pixels = rig.unproject(frustum), rig.project(torch.tensor([[[1.0, 4.0, 0.3]]]))
        plan = lift.plan(rig, SIZE)
    torch.testing.assert_close(points, rig.unproject(frustum), rtol=0, atol=0)
    torch.testing.assert_close(pixels, rig.project(torch.tensor([[[1.0, 4.0, 0.3]]])), rtol=0, atol=0)
    exact = plan_pooling(points[0], lift.grid)
    assert torch.equal(plan.point, exact.point) and torch.equal(plan.offsets, exact.offsets)
    assert functional.mse_loss(points.bfloat16().float(), points) > 0  # which rounded points would not be
