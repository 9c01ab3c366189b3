"""Official bird's-eye-view checkpoints: every key of every published model has its place."""

import pytest
import torch
from official_checkpoints import bev_tensors

from noise2map.convert import config_from_shapes, convert_ddp_state_dict, load_official_ddp
from noise2map.models import Noise2MapForBevSegmentation

PARAMETERS = {  # of the official model, without its four frozen geometry tensors (996,873 numbers)
    "bev_camera": 56_174_167 - 996_873,
    "bev_camera_stock_layers": 53_550_167 - 996_873,
    "bev_fusion": 45_685_095 - 996_873,
    "bev_fusion_stock_layers": 43_061_095 - 996_873,
}
# Without layers that are told the time, the time embedding is dead weight: it is dropped.
TIME_EMBEDDING = 8 + 17 * 1024 + 1024 + 1024 * 1024 + 1024


def empty(name):
    return {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in bev_tensors(name).items()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_key_has_its_place_and_shape(name):
    tensors = empty(name)
    config = config_from_shapes(tensors, "bev")
    converted, report = convert_ddp_state_dict(tensors, config.time_conditioning)
    with torch.device("meta"):
        model = Noise2MapForBevSegmentation(config)
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert own == {key: tuple(value.shape) for key, value in converted.items()}
    assert set(report.used) | set(report.dropped) == set(tensors)
    expected = PARAMETERS[name] - (TIME_EMBEDDING if "stock" in name else 0)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert config.time_conditioning is ("stock" not in name)


def test_published_settings():
    camera, fusion = (config_from_shapes(empty(f"bev_{name}"), "bev") for name in ("camera", "fusion"))
    assert (camera.sensors, camera.ensemble_size, camera.feature_channels) == (["camera"], 5, 256)
    assert (fusion.sensors, fusion.ensemble_size, fusion.feature_channels) == (["camera", "lidar"], 4, 512)
    for config in (camera, fusion):
        assert (config.average, config.num_inference_steps, config.map_scale) == ("steps", 3, 0.01)
        assert config.decoder_layers == 5 and config.feature_size == (128, 128)
        assert config.image_size == [256, 704] and config.depth_bounds == [1.0, 60.0, 0.5]
        assert config.id2label[0] == "drivable_area"
    assert config_from_shapes(empty("bev_camera"), "bev", ensemble_size=1).ensemble_size == 1


def test_task_is_read_off_the_keys():
    with pytest.raises(ValueError, match="keys are those of a bev model"):
        load_official_ddp(empty("bev_camera"), "segmentation")


def test_foreign_and_missing_keys_are_refused():
    with pytest.raises(ValueError, match=r"1 unknown keys, such as \['encoders\.radar\.weight'\]"):
        convert_ddp_state_dict({**empty("bev_camera"), "encoders.radar.weight": torch.zeros(1)})
    tensors = empty("bev_camera")
    del tensors["encoders.camera.vtransform.depthnet.weight"]
    with pytest.raises(ValueError, match=r"no key 'encoders\.camera\.vtransform\.depthnet\.weight'"):
        config_from_shapes(tensors, "bev")
