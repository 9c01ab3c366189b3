"""``noise2map convert ddp`` on a bird's-eye-view checkpoint."""

import pytest
import torch
from official_checkpoints import bev_tensors

from noise2map.cli import main
from noise2map.models import Noise2MapBevProcessor, Noise2MapForBevSegmentation


@pytest.mark.slow
def test_command_writes_what_from_pretrained_reads(tmp_path):
    tensors = {key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in bev_tensors("bev_fusion").items()}
    torch.save({"state_dict": tensors}, tmp_path / "bev.pth")
    with pytest.raises(SystemExit) as stop:
        main(["convert", "ddp", str(tmp_path / "bev.pth"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 0
    model = Noise2MapForBevSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.sensors == ["camera", "lidar"] and not model.head.classifier.weight.any()
    assert Noise2MapBevProcessor.from_pretrained(tmp_path / "out").image_size == [256, 704]
