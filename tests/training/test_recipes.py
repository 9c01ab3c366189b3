import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import yaml
from tiny_training import RawSamples, tiny_model, tiny_processor

from noise2map.data.freedoom.shipped import SAMPLES_ROOT
from noise2map.training.batches import AugmentedSamples, MapCollator
from noise2map.training.encoders.recipe import load_encoder_recipe, make_encoder_recipe
from noise2map.training.generators.recipe import generator_recipe_names, load_generator_recipe, make_generator_recipe
from noise2map.training.maps.build import make_config, make_model, make_processor
from noise2map.training.maps.data import make_data, make_transform
from noise2map.training.maps.recipe import Recipe, load_recipe, make_recipe
from noise2map.training.recipe_files import recipe_names


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_recipe_states_only_what_differs(tmp_path):
    recipe = load_recipe(write(tmp_path, "optim: {lr: 1e-4}\nmodel:\n  config: {map_scale: 1e-2}\n"))
    assert recipe.optim.lr == 1e-4 and isinstance(recipe.optim.lr, float)
    assert recipe.model.config == {"map_scale": 0.01}
    assert dataclasses.replace(recipe, optim=Recipe().optim, model=Recipe().model) == Recipe()
    assert load_recipe(write(tmp_path, "")) == Recipe()


def test_overrides(tmp_path):
    path = write(tmp_path, "train: {iterations: 10}\n")
    overrides = [
        "optim.lr=3e-4",
        "train.iterations=20",
        "model.config.hidden_size=64",
        "data.crop_scale=none",
        "train.eval_steps=[1, 2]",
    ]
    recipe = load_recipe(path, overrides)
    assert (recipe.optim.lr, recipe.train.iterations, recipe.data.crop_scale) == (3e-4, 20, None)
    assert recipe.model.config == {"hidden_size": 64} and recipe.train.eval_steps == [1, 2]
    assert load_recipe(write(tmp_path, yaml.safe_dump(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "text, message",
    [
        ("optim: {learning_rate: 1}", "unknown recipe key optim.learning_rate"),
        ("optim: {weight_deacy: 1}", "did you mean optim.weight_decay"),
        ("optimizer: {lr: 1}", "did you mean optim"),
        ("train: {iterations: many}", "train.iterations is 'many'; expected int"),
        ("train: {iterations: 1.5}", "train.iterations is 1.5"),
        ("train: {bf16: 1}", "train.bf16 is 1; expected bool"),
        ("train: {iterations: true}", "train.iterations is True"),
        ("train: {eval_steps: [1, x]}", r"train.eval_steps\[1\] is 'x'"),
        ("train: {eval_steps: []}", "train.eval_steps"),
        ("train: {save_every: 70}", "multiple of log_every 50"),
        ("optim: {lr: -1}", "optim.lr is -1.0; expected a positive number"),
        ("optim: {beta2: 1}", r"optim.beta2 is 1.0; expected a number in \[0, 1\)"),
        ("schedule: {policy: step}", "schedule.policy is 'step'; expected one of poly, cosine, constant"),
        ("schedule: {warmup_ratio: 0}", "schedule.warmup_ratio is 0"),
        ("schedule: {power: -1}", "schedule.power is -1.0"),
        ("data: {flip: 2}", "data.flip is 2.0; expected a probability"),
        ("data: {crop_scale: [0.9, 0.5]}", r"data.crop_scale is \[0.9, 0.5\]"),
        ("data: {photometric: 1}", "data.photometric is 1.0"),
        ("data: {workers: -1}", "data.workers is -1; expected 0 or more"),
        ("model: {task: flow}", "model.task is 'flow'"),
        ("model: {self_aligned: true}", "set model.init_from"),
        ("data: {size: large}", "data.size is 'large'; expected WIDTHxHEIGHT"),
        ("data: {classes: 9}", "data.classes is 9"),
        ("- a", "expected a mapping"),
        ("train: 5", "recipe section train is 5"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize("make", [make_recipe, make_generator_recipe, make_encoder_recipe])
@pytest.mark.parametrize("change", ["schedule.policy=step", "optim.beta1=-1", "data.flip=1.5", "data.workers=-2"])
def test_every_kind_of_recipe_refuses_what_no_run_can_do(make, change):
    with pytest.raises(ValueError, match="recipe field " + change.replace("=", " is '?")):
        make({}, [change])


def test_broken_yaml_of_an_override_is_named():
    with pytest.raises(ValueError, match=r"override 'data\.train=/data/a: b: c' is not YAML"):
        make_recipe({}, ["data.train=/data/a: b: c"])


def test_a_folder_of_all_splits_is_trained_on_its_training_split(tmp_path):
    for split in ("train", "val", "test"):
        shutil.copytree(SAMPLES_ROOT / "test", tmp_path / split)
        path = tmp_path / split / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "split": split}))
    recipe = load_recipe("freedoom-segmentation-tiny", [f"data.train={tmp_path}", f"data.val={tmp_path}", "data.train_limit=0"])
    assert [part.split for part in make_data(recipe)] == ["train", "val"]
    assert [
        part.split for part in make_data(load_recipe("freedoom-depth-tiny", [f"data.{p}={tmp_path / p}" for p in ("train", "val")]))
    ] == ["train", "val"]


def test_weights_of_other_classes_are_refused_in_a_sentence(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    recipe = load_recipe("freedoom-segmentation-tiny", [f"model.init_from={tmp_path}", "model.encoder_from=none"])
    with pytest.raises(ValueError, match=r"weights of other shapes than the recipe's model with 3 classes.*model\.encoder_from"):
        make_model(recipe, SimpleNamespace(id2label={0: "a", 1: "b", 2: "c"}, palette=[]))


@pytest.mark.parametrize("override", ["lr=1", "optim.lr", "optim.lr.x=1", ".lr=1"])
def test_malformed_overrides_are_named(tmp_path, override):
    with pytest.raises(ValueError, match=override.replace(".", r"\.")):
        load_recipe(write(tmp_path, "optim: {lr: 1}"), [override])


def test_missing_recipe_lists_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match="freedoom-segmentation-tiny"):
        load_recipe("freedoom-segmentation-tny")


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith("official/") and "bev-" not in name])
def test_shipped_recipes_build_a_small_model(name):
    recipe = load_recipe(name, ["model.encoder_from=none"] if name.startswith("decoders/") else [])
    model = make_model(recipe, RawSamples(1))
    assert sum(parameter.numel() for parameter in model.parameters()) < 5e6
    if "nodiffusion" in name:
        assert not model.config.diffusion
    width, height = recipe.image_size()
    assert make_processor(recipe).output_size(480, 640) == (height, width)
    if recipe.model.task == "segmentation":
        assert model.config.id2label == RawSamples.id2label


@pytest.mark.parametrize("pair", ["segmentation", "depth"])
def test_baselines_differ_from_their_models_in_the_diffusion_alone(pair):
    with_diffusion, without = load_recipe(f"freedoom-{pair}-tiny"), load_recipe(f"freedoom-{pair}-tiny-nodiffusion")
    assert (with_diffusion.data, with_diffusion.optim, with_diffusion.schedule, with_diffusion.train) == (
        without.data,
        without.optim,
        without.schedule,
        without.train,
    )
    changed = {
        key
        for key in with_diffusion.model.config.keys() | without.model.config.keys()
        if with_diffusion.model.config.get(key) != without.model.config.get(key)
    }
    of_diffusion = {"map_scale", "map_projection_gain", "min_inverse_snr", "self_aligned", "time_input"}
    assert changed <= {"diffusion"} | of_diffusion and "diffusion" in changed


def test_decoders_differ_in_nothing_but_what_they_predict():
    """What is compared is trained on the same features for the same time; those of another kind have others."""
    kinds = {
        name: re.match("decoders/(completion-|bev-|)", name).group(1) for name in recipe_names() if name.startswith("decoders/")
    }
    for kind, count in (("completion-", 5), ("bev-", 3), ("", 5)):
        recipes, hidden = [load_recipe(name) for name, one in kinds.items() if one == kind], kind == "completion-"
        shared = {(repr(one.data), repr(one.optim), repr(one.schedule), one.model.encoder_from) for one in recipes}
        runs = {repr(dataclasses.replace(one.train, eval_steps=[1])) for one in recipes}
        assert len(recipes) >= count and len(shared) == len(runs) == 1
        assert all((one.data.hide is not None) == hidden and one.model.freeze_encoder for one in recipes)


def test_a_misspelt_backbone_field_is_refused():
    recipe = load_recipe("freedoom-depth-tiny", ["model.config.backbone_config.hiden_sizes=[1]"])
    with pytest.raises(ValueError, match="hiden_sizes"):
        make_config(recipe, RawSamples.id2label)
    with pytest.raises(ValueError, match="model_type is 'convnxt'"):
        make_config(load_recipe("freedoom-depth-tiny", ["model.config.backbone_config.model_type=convnxt"]), RawSamples.id2label)


def test_self_aligned_fine_tuning_starts_from_the_checkpoint(tmp_path):
    import torch
    from tiny_training import tiny_model, tiny_processor

    start = tiny_model()
    start.config.calibration = {"temperature": 2.0}
    start.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    overrides = ["model.self_aligned=true", f"model.init_from={tmp_path}", "data.size=none"]
    path = tmp_path / "aligned.yaml"
    path.write_text("optim: {lr: 6e-6}\n")
    recipe = load_recipe(path, overrides)
    model = make_model(recipe, RawSamples(1))
    assert model.config.self_aligned and model.config.hidden_size == 16 and not start.config.self_aligned
    assert model.calibration is None and start.calibration is not None  # new weights, new errors
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), start.state_dict().values()))
    assert make_processor(recipe).do_resize is False


def test_a_recipe_changes_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "optim: {lr: 1e-3, weight_decay: 0.5}\n"
        "model: {config: {map_scale: 0.1, backbone_config: {model_type: convnext, depths: [1, 1, 1, 1]}}}\n"
    )
    recipe = load_recipe(
        write(tmp_path, "base: base.yaml\noptim: {lr: 2e-3}\nmodel: {config: {backbone_config: {hidden_sizes: [8]}}}")
    )
    assert (recipe.optim.lr, recipe.optim.weight_decay) == (2e-3, 0.5)
    backbone = {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [8]}
    assert recipe.model.config == {"map_scale": 0.1, "backbone_config": backbone}
    # Another type of backbone has other fields: it replaces the base's.
    other = load_recipe(write(tmp_path, "base: base.yaml\nmodel: {config: {backbone_config: {model_type: resnet}}}"))
    assert other.model.config["backbone_config"] == {"model_type": "resnet"}
    assert load_recipe(write(tmp_path, "base: freedoom-depth-tiny")) == load_recipe("freedoom-depth-tiny")


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("base: recipe.yaml", ValueError, "name each other as base"),
        ("base: nowhere", FileNotFoundError, "base of"),
        ("base: [a, b]", ValueError, "name or the path of one recipe"),
        ("base: freedoom-depth-tiny\noptim: {lrr: 1}", ValueError, "unknown recipe key optim.lrr"),
        ("base: freedoom-depth-tiny\nbases: x", ValueError, "unknown recipe key bases"),
    ],
)
def test_mistakes_about_bases_are_named(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize(
    "text, message",
    [
        ("data: {name: ade20k}", "data.root is not set"),
        ("data: {transform: nyu}", "data.crop"),
        ("data: {crop: 32x32}", "default transform cuts no window"),
        ("data: {transform: ade20k, crop: 32x32, size: none}", "scales images about data.size"),
        ("data: {transform: coco}", "data.transform is 'coco'"),
        ("data: {size: none, keep_ratio: true}", "expected a size"),
        ("train: {batch_size: 3, total_batch: 16}", "multiple of batch_size 3"),
    ],
)
def test_impossible_data_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text))


def test_the_batch_is_shared_out(tmp_path):
    recipe = load_recipe(write(tmp_path, "train: {batch_size: 2, total_batch: 16}"))
    assert [recipe.train.accumulation_for(processes) for processes in (1, 2, 4, 8)] == [8, 4, 2, 1]
    for processes in (3, 16):
        with pytest.raises(ValueError, match=f"{processes} processes"):
            recipe.train.accumulation_for(processes)


def test_the_samples_of_a_step_are_those_of_all_processes(tmp_path):
    shared = load_recipe(write(tmp_path, "train: {batch_size: 2, total_batch: 16}")).train
    assert [shared.samples_per_step(processes) for processes in (1, 2, 8)] == [16, 16, 16]
    each = load_recipe(write(tmp_path, "train: {batch_size: 2, accumulation: 3}")).train
    assert [each.samples_per_step(processes) for processes in (1, 2, 8)] == [6, 12, 48]


def test_a_kept_ratio_fits_pictures_into_a_frame(tmp_path):
    recipe = load_recipe(write(tmp_path, "data: {size: 2048x512, keep_ratio: true}"))
    processor = make_processor(recipe)
    assert processor.output_size(480, 640) == (512, 683) and processor.output_size(640, 480) == (683, 512)
    assert processor.output_size(300, 3000) == (205, 2048)


def test_hidden_parts_are_drawn_anew_in_training_and_by_id_in_validation():
    fields = {"train": str(SAMPLES_ROOT / "train"), "val": str(SAMPLES_ROOT / "val"), "hide": "mixed", "size": "80x60"}
    recipe = make_recipe({"data": fields})
    train, val = make_data(recipe)
    samples = AugmentedSamples(train, make_transform(recipe, train), seed=0)
    first, again, later = samples[(0, 3)], samples[(0, 3)], samples[(1, 3)]
    assert (first["hidden"] == again["hidden"]).all() and (first["hidden"] != later["hidden"]).any()
    assert (first["labels"] != 255).mean() > 0.9  # truth is kept
    assert (val[2]["hidden"] == make_data(recipe)[1][2]["hidden"]).all()
    batch = MapCollator(make_processor(recipe), "segmentation")([first, later, {**val[0]}])
    assert batch["hidden"].shape == batch["labels"].shape == (3, 60, 80)
    # Half the size in both directions: each pixel of the small mask is one of the four of the large.
    blocks = first["hidden"].reshape(60, 2, 80, 2).mean((1, 3))
    assert (batch["hidden"][0].numpy() == (blocks > 0))[(blocks == 0) | (blocks == 1)].all()
    plain = MapCollator(make_processor(recipe), "segmentation")([train[0]])
    assert "hidden" not in plain
    share = make_recipe({"data": {**fields, "hide_probability": 0.0}})
    assert not AugmentedSamples(train, make_transform(share, train), seed=0)[(0, 3)]["hidden"].any()
    assert make_data(share)[1][0]["hidden"].any()  # all validation images are covered
    for bad, message in (
        ({"hide": "circle"}, r"recipe fields data.hide\*: hide is 'circle'"),
        ({"hide_probability": 2.0}, r"recipe fields data.hide\*: hide probability is 2.0"),
        ({"hide_width": [0.3]}, r"data.hide_width is \[0.3\]; expected \[low, high\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make_recipe({"data": {**fields, **bad}})
    with pytest.raises(ValueError, match=r"data.hide is 'mixed'; expected none"):
        make_recipe({"data": {"name": "freedoom-surround", "root": "x", "hide": "mixed"}, "model": {"task": "bev"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["data.name=bar", "data.hide=rectangle"], "data.name is 'bar'; expected one of"),
        (["train.seed=-1"], "train.seed is -1; expected a whole number from 0"),
        (["train.seed=4294967296"], "train.seed is 4294967296; expected a whole number from 0"),
        (["train.ema_warmup_ratio=0"], "train.ema_warmup_ratio is 0.0; expected a positive number, or none"),
        (["train.ema_warmup_ratio=.nan"], "train.ema_warmup_ratio is nan; expected"),
        (["optim.lr=.inf"], "optim.lr is inf; expected a positive number"),
        (["optim.weight_decay=.inf"], "optim.weight_decay is inf; expected 0 or more"),
        (["optim.no_decay=foo"], "optim.no_decay is 'foo'; expected norms, none"),
        (["optim.no_decay=['(']"], r"optim.no_decay has '\('; expected a regular expression"),
        (["train.eval_steps=[2000]"], r"train.eval_steps is \[2000\]; expected numbers from 1 to 1000"),
    ],
)
def test_values_that_would_fail_after_the_data_is_read_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("freedoom-depth-tiny", change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["train.sample_steps=2000"], "train.sample_steps is 2000; expected at most the 1000 steps of the process"),
        (["model.unet.block_out_channels=64"], "model.unet.block_out_channels is 64; expected a list of widths"),
        (["model.depth_representation=foo"], "model.depth_representation is 'foo'; expected log or linear"),
    ],
)
def test_impossible_generators_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        load_generator_recipe(generator_recipe_names()[0], change)


def test_what_covers_images_of_an_encoder_is_named():
    with pytest.raises(ValueError, match=r"recipe fields data.hide\*: "):
        load_encoder_recipe("freedoom-encoder-tiny", ["data.hide=foo"])


def test_no_decay_rules_are_those_of_the_optimizer():
    from noise2map.training.optimization import PUBLISHED_RULES
    from noise2map.training.recipe_sections import NO_DECAY

    assert set(NO_DECAY) == {"norms", "none", *PUBLISHED_RULES}
