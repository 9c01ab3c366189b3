"""From files in nuScenes' format through augmentation and MapTrainer to scores."""

import json

import pytest
import torch
import toy_nuscenes as toy
from tiny_bev import tiny_bev
from transformers import TrainingArguments

from noise2map.data.nuscenes import BevAugmentation, NuScenesDataset
from noise2map.models import Noise2MapBevProcessor, Noise2MapForBevSegmentation
from noise2map.training import MapTrainer
from noise2map.training.batches import MapCollator

pytest.importorskip("shapely")
pytest.importorskip("cv2")


@pytest.mark.parametrize("sensors", [("camera",), ("camera", "lidar")])
def test_trains_on_nuscenes_files_and_scores(tmp_path, sensors):
    root = toy.make(tmp_path / "set")
    grid = {"size_m": (12.0, 12.0), "canvas": (12, 16)}
    train, val = (NuScenesDataset(root, split, "v1.0-toy", sensors, **grid) for split in ("toy_train", "toy_val"))
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=2, save_strategy="no",
        logging_steps=1, report_to=[], use_cpu=True, seed=3, disable_tqdm=True,
    )  # fmt: skip
    trainer = MapTrainer(
        tiny_bev(sensors, num_cameras=6), arguments, train_dataset=train, eval_dataset=val,
        processing_class=Noise2MapBevProcessor([32, 64], 0.8), eval_steps=(1, 2), ema_half_life_images=None,
        transform=BevAugmentation(train, (32, 64), image_scale=(0.8, 1.0)),
    )  # fmt: skip
    trainer.train()
    scores = trainer.evaluate()
    assert {"eval_mIoU_max_1", "eval_mIoU_50_1", "eval_mIoU_max_2", "eval_mIoU_50_2"} <= set(scores)
    assert all(0 <= scores[name] <= 1 for name in scores if "mIoU" in name)
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(loss is not None for loss in losses)
    loaded = Noise2MapForBevSegmentation.from_pretrained(trainer.export_final())
    assert torch.equal(loaded.codec.embedding.weight, trainer.model.codec.embedding.weight)


def test_samples_without_labels_cannot_train():
    with pytest.raises(ValueError, match="sample 'a' has no 'labels'"):
        MapCollator(Noise2MapBevProcessor(), "bev")([{"id": "a"}])
