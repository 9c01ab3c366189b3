"""Recipes for bird's-eye-view maps: through nuScenes' format, from files to a trained, saved and loaded model."""

import numpy as np
import pytest
import torch
import toy_nuscenes as toy

from noise2map.data.freedoom.shipped import SURROUND_SAMPLES_ROOT
from noise2map.data.transforms.photometric import SurroundColors
from noise2map.models import Noise2MapBevProcessor, Noise2MapForBevSegmentation, Noise2MapForSemanticSegmentation
from noise2map.runs.run_directory import read_metrics
from noise2map.tasks.bev import map_extent
from noise2map.training.batches import MapCollator
from noise2map.training.maps.build import make_config, make_model, make_processor, make_trainer
from noise2map.training.maps.data import class_names
from noise2map.training.maps.dry_run import dry_run
from noise2map.training.maps.recipe import load_recipe
from noise2map.training.recipe_files import recipe_names

pytest.importorskip("shapely")
pytest.importorskip("cv2")

TINY = [
    "model.encoder_from=none",
    "model.config.backbone_config.hidden_sizes=[4, 4, 8, 8]",
    "model.config.backbone_config.depths=[1, 1, 1, 1]",
    "model.config.camera_neck_channels=8",
    "model.config.context_channels=4",
    "model.config.depth_bounds=[1, 9, 1]",
    "model.config.x_bounds=[-8, 8, 1]",
    "model.config.y_bounds=[-8, 8, 1]",
    "model.config.map_x_bounds=[-6, 6, 1]",
    "model.config.map_y_bounds=[-6, 6, 0.75]",
    "model.config.bev_neck_channels=8",
    "model.config.hidden_size=16",
    "model.config.group_norm_groups=4",
    "model.config.decoder_layers=1",
    "model.config.decoder_attention_heads=2",
    "model.config.decoder_ffn_dim=16",
    "model.config.time_embed_dim=16",
    "data.size=64x32",
    "bev.image_scale=0.8",
    "bev.augment_image_scale=[0.8, 1.0]",
    "train.batch_size=2",
    "train.iterations=3",
    "train.log_every=1",
    "train.save_every=3",
    "train.eval_every=0",
    "train.threads=0",
    "train.bf16=false",
]
CAMERA = ["model.config.bev_decoder_channels=[8, 8, 8]"]
FUSION = [
    "model.config.bev_decoder_channels=[8, 8]",
    "model.config.voxel_size=[0.25, 0.25, 0.2]",
    "model.config.lidar_channels=[4, 4, 4, 4]",
    "model.config.fuser_channels=8",
]


@pytest.fixture
def toy_root(tmp_path, monkeypatch):
    root = toy.make(tmp_path / "set")
    (root / "v1.0-toy").rename(root / "v1.0-trainval")  # the version that train and val live in
    (root / "v1.0-trainval" / "splits.json").write_text('{"train": ["toy-0001"], "val": ["toy-0002"]}')
    return root


@pytest.mark.parametrize(("kind", "sizes"), [("camera", CAMERA), ("fusion", FUSION), ("camera-tiny-nodiffusion", CAMERA)])
def test_a_recipe_trains_through_nuscenes_files(kind, sizes, toy_root, tmp_path):
    name = f"freedoom-bev-{kind.removesuffix('-tiny-nodiffusion')}-tiny" + ("-nodiffusion" if "nodiff" in kind else "")
    recipe = load_recipe(name, [*TINY, *sizes, "data.name=nuscenes", f"data.root={toy_root}"])
    trainer = make_trainer(recipe, tmp_path / "run")
    trainer.train()
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert len(losses) == 3 and np.isfinite(losses).all()
    scores = trainer.evaluate()
    assert 0 <= scores["eval_mIoU_50_1"] <= scores["eval_mIoU_max_1"] <= 1
    assert ("eval_mIoU_50_3" in scores) == ("nodiff" not in kind)
    final = trainer.export_final()
    loaded = Noise2MapForBevSegmentation.from_pretrained(final)
    assert loaded.config.id2label[0] == "drivable_area" and list(loaded.config.sensors) == list(recipe.model.config["sensors"])
    processor = Noise2MapBevProcessor.from_pretrained(final)
    assert (processor.image_size, processor.image_scale) == ([32, 64], 0.8)


def test_depth_is_taught_by_points_that_training_samples_alone_hold(toy_root, tmp_path):
    sizes = [*CAMERA, "model.config.depth_loss_weight=0.5", "data.name=nuscenes", f"data.root={toy_root}"]
    trainer = make_trainer(load_recipe("freedoom-bev-camera-tiny", [*TINY, *sizes]), tmp_path / "run")
    assert "points" in trainer.train_dataset[0] and "points" not in trainer.eval_dataset[0]
    forward, given = trainer.model.forward, []
    trainer.model.forward = lambda **inputs: (given.append(inputs), forward(**inputs))[1]
    trainer.train()
    assert len(given) == 3 and all(len(inputs["points"]) == len(inputs["pixel_values"]) for inputs in given)
    assert 0 <= trainer.evaluate()["eval_mIoU_max_1"] <= 1
    loaded = Noise2MapForBevSegmentation.from_pretrained(trainer.export_final())
    assert list(loaded.config.sensors) == ["camera"] and loaded.config.depth_loss_weight == 0.5


def test_what_nobody_sees_is_trained_on_where_a_recipe_says_so(tmp_path, monkeypatch):
    places = [f"data.root={SURROUND_SAMPLES_ROOT}", "data.train=test", "data.val=test", "data.size=64x32", "bev.image_scale=0.4"]
    tiny = [*TINY, *CAMERA, *places, "bev.augment_image_scale=[0.4, 0.5]", "train.iterations=1", "train.eval_steps=[1]"]
    tiny += [f"model.config.{name}=[-12, 12, {cell}]" for name, cell in (("x_bounds", 1), ("y_bounds", 1), ("map_x_bounds", 2))]
    tiny += ["model.config.map_y_bounds=[-12, 12, 1.5]"]
    losses = {}
    for cells in ("visible", "all"):
        trainer = make_trainer(load_recipe("freedoom-bev-camera-tiny", [*tiny, f"bev.cells={cells}"]), tmp_path / cells)
        batch, seen = next(iter(trainer.get_train_dataloader())), []
        forward = trainer.model.forward
        monkeypatch.setattr(
            trainer.model, "forward", lambda forward=forward, seen=seen, **inputs: (seen.append(set(inputs)), forward(**inputs))[1]
        )
        if cells == "all":
            assert set(batch["labels"].unique().tolist()) == {0, 1} and batch["visibility"].shape == (2, 12, 16)
        else:
            assert (batch["labels"] == 255).any() and "visibility" not in batch
        trainer.train()
        assert len(seen) == 1 and "labels" in seen[0] and "visibility" not in seen[0]
        losses[cells] = read_metrics(tmp_path / cells)[0]["loss"]
        assert 0 <= trainer.evaluate()["eval_mIoU_50_1"] <= 1
    assert losses["all"] != losses["visible"]


def frozen_recipe(cache, *changes):
    places = [f"data.root={SURROUND_SAMPLES_ROOT}", "data.train=test", "data.val=test", "data.size=64x32", "bev.image_scale=0.4"]
    grid = [f"model.config.{name}=[-12, 12, {cell}]" for name, cell in (("x_bounds", 1), ("y_bounds", 1), ("map_x_bounds", 2))]
    tiny = [*TINY, *CAMERA, *places, *grid, "model.config.map_y_bounds=[-12, 12, 1.5]", "bev.augment_image_scale=[0.4, 0.5]"]
    kept = ["model.freeze_encoder=true", f"train.cache_features={cache}", "data.train_limit=3", "train.eval_steps=[1]"]
    return load_recipe("freedoom-bev-camera-tiny", [*tiny, *kept, "bev.cells=all", *changes])


def test_decoders_learn_from_kept_features_and_layers_alone(tmp_path, monkeypatch):
    trainer = make_trainer(frozen_recipe(tmp_path / "cache"), tmp_path / "run")
    model, samples = trainer.model.eval(), trainer.training_samples()
    batch = MapCollator(trainer.processing_class, "bev")
    for index, view in ((0, 0), (0, 1), (2, 1)):
        shown = trainer.cache.views(trainer.train_dataset[index], index, view)
        with torch.no_grad():
            expected = trainer.task.encode(model, batch([shown]))[0]
        assert torch.allclose(trainer.cache[index, view].float(), expected, rtol=2**-7, atol=1e-3)
        assert np.array_equal(trainer.cache.labels((index, view)), shown["labels"])
    assert not np.array_equal(trainer.cache.labels((0, 0)), trainer.cache.labels((0, 1)))  # turned by another angle
    drawn = [samples[epoch, 1] for epoch in range(16)]
    assert {one["labels"].tobytes() for one in drawn} == {trainer.cache.labels((1, view)).tobytes() for view in range(2)}
    monkeypatch.setattr(type(trainer.train_dataset), "__getitem__", lambda self, index: pytest.fail("read a place again"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.train()
    kept = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert {name for name in before if name.startswith("encoder.")} <= kept and "head.classifier.weight" not in kept


def test_kept_features_are_those_of_one_augmentation(tmp_path):
    make_trainer(frozen_recipe(tmp_path / "cache"), tmp_path / "run")
    make_trainer(frozen_recipe(tmp_path / "cache", "train.batch_size=1"), tmp_path / "other")
    for change in ("bev.augment_scene_rotate_deg=10", "data.photometric=0", "data.train_limit=2", "bev.cells=visible"):
        with pytest.raises(ValueError, match="another encoder, other images or other views"):
            make_trainer(frozen_recipe(tmp_path / "cache", change), tmp_path / "run")
    with pytest.raises(ValueError, match=r"train\.cache_window is '64x32'; expected none for bird's-eye-view maps"):
        frozen_recipe(tmp_path / "cache", "train.cache_window=64x32")


def test_pairs_of_recipes_differ_in_nothing_else():
    for sensors in ("camera", "fusion"):
        with_diffusion, without = (load_recipe(f"freedoom-bev-{sensors}-tiny{end}").to_dict() for end in ("", "-nodiffusion"))
        assert without["model"]["config"].pop("diffusion") is False
        assert with_diffusion == without
    camera, fusion = (load_recipe(f"freedoom-bev-{sensors}-tiny") for sensors in ("camera", "fusion"))
    assert (camera.train, camera.optim, camera.schedule, camera.bev, camera.data) == (
        fusion.train, fusion.optim, fusion.schedule, fusion.bev, fusion.data,
    )  # fmt: skip


def test_the_backbone_starts_from_a_segmentation_model():
    recipe = load_recipe("freedoom-bev-camera-tiny", ["model.config.bev_decoder_channels=[8, 8, 8]"])
    data = type("Data", (), {"id2label": class_names(recipe)})
    model = make_model(recipe, data)
    assert recipe.model.encoder_from is not None
    from noise2map.zoo import resolve_model

    donor = Noise2MapForSemanticSegmentation.from_pretrained(resolve_model(recipe.model.encoder_from))
    own, given = model.encoder.camera.backbone.state_dict(), donor.encoder.backbone.state_dict()
    assert set(own) <= set(given)
    assert all(torch.equal(own[name], given[name]) for name in own)
    with pytest.raises(ValueError, match="has an encoder of other sizes"):
        make_model(load_recipe("freedoom-bev-camera-tiny", ["model.config.backbone_config.hidden_sizes=[4, 4, 8, 8]"]), data)


def test_a_model_starts_with_the_whole_encoder_of_another_with_its_sensors():
    recipe = load_recipe("freedoom-bev-fusion-matched", ["model.encoder_from=freedoom-bev-completion-tiny"])
    data = type("Data", (), {"id2label": class_names(recipe)})
    own = make_model(recipe, data).encoder.state_dict()
    given = Noise2MapForBevSegmentation.from_pretrained("freedoom-bev-completion-tiny").encoder.state_dict()
    assert set(own) == set(given) and all(torch.equal(value, given[name]) for name, value in own.items())
    with pytest.raises(ValueError, match="has an encoder of other sizes"):
        make_model(load_recipe("freedoom-bev-fusion-matched", ["model.encoder_from=freedoom-bev-camera-completion-tiny"]), data)
    images = load_recipe("freedoom-segmentation-tiny", ["model.encoder_from=freedoom-bev-camera-completion-tiny"])
    with pytest.raises(ValueError, match="expected a map model of images"):
        make_model(images, type("Data", (), {"id2label": {0: "a"}, "palette": []}))


@pytest.mark.parametrize("name", [name for name in recipe_names() if "bev" in name])
def test_the_shipped_recipes_say_what_they_would_train(name):
    recipe = load_recipe(name)
    found = dry_run(recipe)
    assert found.task == "bev" and 1e6 < found.parameters < 6e6
    assert "bird" not in found.text() and "activations depend on the rig" in found.text()
    config = make_config(recipe, class_names(recipe))
    assert config.id2label[5] == "wall" and make_processor(recipe).image_size == list(config.image_size)
    assert map_extent(config)["canvas"] == (64, 64) and map_extent(config)["size_m"] == pytest.approx((25.6, 25.6))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=freedoom"], "data.name is 'freedoom'; expected one of nuscenes, freedoom-surround for task bev"),
        (["data.root=none"], "data.root is not set; expected the folder of freedoom-surround"),
        (["model.task=depth"], "data.name is 'freedoom-surround'; expected one of freedoom, folder"),
        (["bev.sweeps=-1"], "bev.sweeps is -1; expected 0 or more"),
        (["bev.augment_scene_flip=1.5"], "bev.augment_scene_flip is 1.5; expected a probability"),
        (["bev.augment_image_scale=[2, 1]"], r"bev.augment_image_scale is \[2.0, 1.0\]; expected \[low, high\]"),
        (["bev.cells=some"], "bev.cells is 'some'; expected visible or all"),
        (["bev.cells=all", "data.name=nuscenes"], "bev.cells is 'all'; nuscenes labels every cell, expected 'visible'"),
        (
            ["model.freeze_encoder=true", "model.config.depth_loss_weight=1"],
            "model.config.depth_loss_weight is 1; expected 0 where the encoder is frozen",
        ),
        (["bev.seeps=1"], "unknown recipe key bev.seeps; did you mean bev.sweeps"),
    ],
)
def test_impossible_recipes_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("freedoom-bev-camera-tiny", overrides)


def test_a_map_beside_the_car_is_refused():
    recipe = load_recipe("freedoom-bev-camera-tiny", ["model.config.map_x_bounds=[-12.8, 6.4, 0.4]"])
    with pytest.raises(ValueError, match=r"map_x_bounds is \[-12.8, 6.4, 0.4\]; expected a range around 0"):
        map_extent(make_config(recipe, class_names(recipe)))


def test_all_views_change_color_alike():
    from PIL import Image

    from noise2map.data.transforms import Photometric

    views = [Image.new("RGB", (4, 4), (90, 120, 60))] * 3
    change = SurroundColors(Photometric(0.3))
    changed = change({"images": views, "id": "a"}, np.random.default_rng(0))
    assert changed["images"][0].tobytes() == changed["images"][2].tobytes() != views[0].tobytes()
    assert change({"points": 1}, np.random.default_rng(0)) == {"points": 1}
