"""The 22 published configurations against what was recorded of the public code."""

import functools
import json
import re

import pytest
import torch
from golden_reference import GOLDEN, published_models

from noise2map.convert.ddp import convert_ddp_state_dict
from noise2map.training.maps.dry_run import dry_run, empty_model
from noise2map.training.maps.recipe import load_recipe
from noise2map.training.optimization import LearningRateCurve, decayed_parameters
from noise2map.training.recipe_files import recipe_names

RECORDED = json.loads((GOLDEN / "official_runs.json").read_text())
RUNS = RECORDED["runs"]
pytestmark = pytest.mark.golden


def recipe_of(config):
    """The recipe of a published configuration, by the parts of its name."""
    letter = re.search(r"(?:swin|convnext)_?([tsbl])_", config)[1]
    kind = "convnext" if "convnext" in config else "swin"
    data = next(name for name in ("ade20k", "cityscapes", "kitti", "nyu") if name in config)
    return f"official/{data}-{kind}-{letter}" + "-aligned" * ("aligned" in config)


@functools.cache
def model_of(config):
    return empty_model(load_recipe(recipe_of(config)))


def test_every_published_configuration_has_its_recipe():
    assert sorted(map(recipe_of, RUNS)) == [name for name in recipe_names() if name.startswith("official/")]
    assert len(RUNS) == 22


@pytest.mark.parametrize("config", RUNS)
def test_optimisation_is_the_published_one(config):
    run, recipe = RUNS[config], load_recipe(recipe_of(config))
    optim, train = recipe.optim, recipe.train
    assert (optim.lr, [optim.beta1, optim.beta2], optim.weight_decay) == (run["lr"], run["betas"], run["weight_decay"])
    assert (optim.max_grad_norm, train.iterations) == (run["clip"], run["iterations"])
    assert (train.batch_size, train.total_batch, train.eval_every) == (run["samples_per_gpu"], 16, run["evaluation_interval"])
    micro_batches = 16 // run["samples_per_gpu"]
    assert recipe.train.accumulation_for(micro_batches) == 1 and recipe.train.accumulation_for(1) == micro_batches
    assert not (train.bf16 or train.ema_half_life_images)


@pytest.mark.parametrize("config", RUNS)
def test_learning_rates_are_the_recorded_ones(config):
    recipe = load_recipe(recipe_of(config))
    schedule = recipe.schedule
    curve = LearningRateCurve(
        schedule.policy,
        recipe.train.iterations,
        schedule.warmup_iterations,
        schedule.warmup_ratio,
        schedule.power,
        schedule.min_ratio,
    )
    recorded = RECORDED["curves"][RUNS[config]["curve"]]
    assert len(recorded) > 9
    for iteration, lr in recorded.items():
        assert recipe.optim.lr * curve.factor(int(iteration)) == pytest.approx(lr, rel=1e-9)


@pytest.mark.parametrize("config", RUNS)
def test_models_have_the_published_size_and_settings(config):
    run, model = RUNS[config], model_of(config)
    fields = model.config
    assert sum(parameter.numel() for parameter in model.parameters()) == run["parameters"]
    assert fields.backbone_config.drop_path_rate == run["drop_path_rate"]
    assert (fields.num_inference_steps, fields.map_scale) == (run["timesteps"], run["scale"])
    assert (fields.self_aligned, fields.average == "steps") == (run["self_aligned"], run["accumulation"])
    if run["window_size"] is not None:
        assert fields.backbone_config.window_size == run["window_size"]
    if run["head_max_depth"] is not None:
        assert (fields.max_depth, fields.min_depth) == (run["head_max_depth"], 1e-3)
        assert (fields.sample_max_depth or fields.max_depth) == run["model_max_depth"]
        assert (fields.time_input, fields.min_inverse_snr) == ("time", 0.0)


@pytest.mark.parametrize("config", RUNS)
def test_pretrained_backbones_are_those_of_the_published_runs(config):
    official, source = RUNS[config]["pretrained"], load_recipe(recipe_of(config)).model.backbone_from
    if official is None:  # self-aligned runs start from a whole model
        assert source is None and load_recipe(recipe_of(config)).model.init_from is not None
        return
    name = source.rpartition("/")[2]
    assert name.split("-")[1] in official and ("22k" in name) == ("22k" in official or "21k" in official)
    if name.startswith("swin"):
        window, size = re.search(r"window(\d+)-(\d+)", name).groups()
        assert f"window{window}_{size}" in official


@pytest.mark.parametrize("config", RECORDED["no_decay"])
def test_weight_decay_leaves_out_the_recorded_parameters(config):
    recorded = RECORDED["no_decay"][config]
    official = recorded["names"] if isinstance(recorded["names"], list) else RECORDED["no_decay"][recorded["names"]]["names"]
    weights = {key: torch.empty(shape, device="meta") for key, shape in published_models()[config]["shapes"].items()}
    _, report = convert_ddp_state_dict(weights)
    expected = {ours for key in official for ours in report.used[key]}
    model = model_of(config)
    names = {name for name, _ in model.named_parameters()}
    exempt = names - set(decayed_parameters(model, load_recipe(recipe_of(config)).optim.no_decay))
    assert exempt == expected and len(official) == recorded["count"]


def test_published_rules_are_refused_for_other_backbones():
    with pytest.raises(ValueError, match="Swin and ConvNeXt"):
        decayed_parameters(torch.nn.Linear(2, 2), "ddp-depth")
    with pytest.raises(ValueError, match="'ddp-segmentation'"):
        decayed_parameters(torch.nn.Linear(2, 2), "ddp")


def test_windows_and_families_follow_the_data_set():
    crops = {
        "ade20k": (512, 512),
        "cityscapes": (1024, 512),
        "kitti": (704, 352),
        "nyu": (544, 416),
    }  # DDP, appendix; width x height
    for name in recipe_names():
        if name.startswith("official/"):
            recipe = load_recipe(name)
            assert recipe.data.name == recipe.data.transform and recipe.crop_size() == crops[recipe.data.name]
            assert recipe.model.task == ("segmentation" if recipe.data.name in ("ade20k", "cityscapes") else "depth")


def test_a_dry_run_measures_without_data():
    recipe = load_recipe("official/ade20k-swin-t")
    found = dry_run(recipe)
    assert (found.parameters, found.batch, found.accumulation) == (39666734, 16, 8)
    # A Swin-T forward pass of 512x512 alone is 25 GFLOPs of multiply-adds; the backward pass costs twice the forward.
    assert found.step_flops > 3 * 16 * 2 * 25e9
    assert "39.67M parameters" in found.text() and "160000 steps of 16 images" in found.text()
    assert any("data/ade20k" in remark for remark in found.remarks)
    twice = dry_run(load_recipe("official/ade20k-swin-t", ["train.batch_size=4"]))
    assert twice.activation_bytes == pytest.approx(2 * found.activation_bytes, rel=0.05)
    # What depends on the grid alone (positional terms) is computed once for a micro-batch, so larger ones cost a little less.
    assert 0.99 < twice.step_flops / found.step_flops < 1 and twice.state_bytes == 16 * found.parameters


def test_activation_bytes_are_what_autograd_keeps():
    from noise2map.training.maps.dry_run import measure_step

    recipe = load_recipe("freedoom-segmentation-tiny", ["model.config.decoder_layers=1"])
    small, _ = measure_step(empty_model(recipe), 1, (64, 64))
    more, _ = measure_step(empty_model(load_recipe("freedoom-segmentation-tiny", ["model.config.decoder_layers=2"])), 1, (64, 64))
    tokens, width = 16 * 16, 128
    # A layer keeps at least its input, both norms' inputs and the feed-forward's inside, a map of tokens each, 4 bytes a number.
    assert more - small > 4 * tokens * width * 4
