"""Recipes of the public datasets train on Freedoom rooms in those datasets' own formats."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_recipes import TINY

from noise2map.rendering.export import export_frames
from noise2map.runs.run_directory import read_metrics
from noise2map.training.maps.build import make_trainer
from noise2map.training.maps.recipe import load_recipe


@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_segmentation_recipes_train_on_their_layout(tmp_path, name):
    export_frames(name, "samples", tmp_path / "data", limit=4)
    sizes = [f"data.root={tmp_path / 'data'}", "data.size=256x96", "data.crop=96x64"]
    trainer = make_trainer(load_recipe(f"official/{name}-swin-t", [*TINY, *sizes]), tmp_path / "run")
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (2, 3, 64, 96) and batch["labels"].shape == (2, 64, 96)
    assert trainer.model.config.num_labels == {"ade20k": 150, "cityscapes": 19}[name]
    assert trainer.model.config.palette[0] == {"ade20k": "#787878", "cityscapes": "#804080"}[name]  # wall and road
    trainer.train()
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert len(losses) == 6 and np.isfinite(losses).all()
    scores = trainer.evaluate()
    assert 0 <= scores["eval_mIoU_1"] <= 1
    final = trainer.export_final()
    assert (final / "model.safetensors").is_file()


def depth_folder(root, size):
    """A KITTI and a NYU-Depth V2 folder of one scene of ramps, four pictures each for training and testing."""
    width, height = size
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        lines = {"kitti": [], "nyu": []}
        for index in range(count):
            depth = (2 + 6 * np.linspace(0, 1, height)[:, None] * np.ones((1, width)) + rng.random()).astype(np.float32)
            picture = Image.fromarray((np.stack([depth * 25] * 3, -1) + rng.integers(0, 9, (height, width, 3))).astype(np.uint8))
            drive = f"2011_09_26_drive_000{index}_sync"
            image = f"2011_09_26/{drive}/image_02/data/{split}{index}.png"
            truth = f"{drive}/proj_depth/groundtruth/image_02/{split}{index}.png"
            places = {
                "kitti": (f"input/{image}", f"gt_depth/{truth}", 256),
                "nyu": (f"a/{split}{index}.jpg", f"a/{split}{index}.png", 1000),
            }
            for name, (one, other, unit) in places.items():
                for path in (root / name / one, root / name / other):
                    path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(root / name / one)
                Image.fromarray((depth * unit).astype(np.uint16)).save(root / name / other)
            lines["kitti"].append(f"{image} {truth} 721.5377")
            lines["nyu"].append(f"{places['nyu'][0]} {places['nyu'][1]} 518.8579")
        (root / "kitti" / f"kitti_eigen_{split}.txt").write_text("\n".join(lines["kitti"]) + "\n")
        (root / "nyu" / f"nyu_{split}.txt").write_text("\n".join(lines["nyu"]) + "\n")


@pytest.mark.parametrize("name, size, crop", [("kitti", (1224, 370), "96x64"), ("nyu", (640, 480), "96x64")])
def test_depth_recipes_train_on_their_layout(tmp_path, name, size, crop):
    depth_folder(tmp_path, size)
    own = [f"data.root={tmp_path / name}", f"data.crop={crop}", "train.sample_images=0", "train.eval_images=1"]
    trainer = make_trainer(load_recipe(f"official/{name}-swin-t", [*TINY, *own]), tmp_path / "run")
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    known = batch["labels"][batch["labels"] > 0]
    assert float(known.min()) > 1.9 and float(known.max()) < 9.1  # metres, whatever the unit of the files
    seen = trainer.eval_dataset[0]
    assert seen["image"].size == {"kitti": (1216, 352), "nyu": (640, 480)}[name] and 0.3 < seen["valid"].mean() < 0.9
    trainer.train()
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_abs_rel_1"]))


def test_a_broken_picture_stops_a_run_or_is_skipped_by_name(tmp_path):
    export_frames("ade20k", "samples", tmp_path / "data", limit=4)
    broken = sorted((tmp_path / "data").rglob("images/training/*.jpg"))[1]
    broken.write_bytes(broken.read_bytes()[:200])
    sizes = [f"data.root={tmp_path / 'data'}", "data.size=256x96", "data.crop=96x64", "train.sample_images=0"]
    strict = make_trainer(load_recipe("official/ade20k-swin-t", [*TINY, *sizes]), tmp_path / "strict")
    with pytest.raises(OSError, match=broken.name):
        list(strict.get_train_dataloader())
    lenient = make_trainer(load_recipe("official/ade20k-swin-t", [*TINY, *sizes, "data.skip_broken=1"]), tmp_path / "lenient")
    with pytest.warns(UserWarning, match=broken.name):
        assert len(list(lenient.get_train_dataloader())) == 2
