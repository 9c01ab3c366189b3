import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import RawSamples, tiny_model, tiny_processor
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from noise2map.models import Noise2MapImageProcessor
from noise2map.report.palettes import INVALID_COLOR, colorize_depth, depth_range
from noise2map.runs.files import replace_directory
from noise2map.runs.run_directory import append_metrics, last_checkpoint, mark_complete, read_metrics, rewind_metrics
from noise2map.training.batches import AugmentedSamples, EpochSampler, MapCollator
from noise2map.training.callbacks import EmaCallback, MetricsCallback
from noise2map.training.maps.samples import sample_cells, sample_panel
from noise2map.training.optimization import decayed_parameters
from noise2map.training.seeded_trainer import step_seed


def test_half_life_is_counted_in_images():
    for images_per_step in (1, 8, 50):
        ema = EmaCallback(half_life_images=400, warmup_ratio=None)
        assert ema.decay(images_per_step, 10**6) ** (400 / images_per_step) == pytest.approx(0.5)
    warm = EmaCallback(half_life_images=400, warmup_ratio=0.1)
    assert warm.decay(8, 1000) ** (100 / 8) == pytest.approx(0.5)  # a tenth of 1000 images
    assert warm.decay(8, 10**6) == EmaCallback(400, None).decay(8, 0)


def test_average_of_parameters_and_batch_statistics_follows_the_recursion():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = EmaCallback(half_life_images=16, warmup_ratio=None)
    ema.start(model)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        model(torch.randn(8, 3, generator=generator))
        ema.update(model, 8, 8 * step)
        decay = 0.0 if step == 1 else 0.5 ** (8 / 16)  # the first update takes the weights as they are
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.clone()
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ema.averaged(model):
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor.double(), expected[name].double(), atol=1e-5), name
    assert all(torch.equal(tensor, raw[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(raw["0.weight"], expected["0.weight"])


@pytest.mark.parametrize("ratio", [None, 0.5, 0.1, 0.05])
def test_the_decay_is_the_one_that_is_asked_for(ratio):
    """Not bounded by the ramp of diffusers' own average, which no option would then change."""
    model, ema = nn.Linear(2, 2), EmaCallback(half_life_images=10_000, warmup_ratio=ratio)
    ema.start(model)
    for step in range(1, 60):
        ema.update(model, 8, 8 * step)
    assert ema._average.cur_decay_value == pytest.approx(ema.decay(8, 8 * 59))


def test_a_resumed_run_logs_and_saves_as_it_is_told_now(tmp_path):
    args = TrainingArguments(str(tmp_path), logging_steps=3, save_steps=5, use_cpu=True)
    state = TrainerState(max_steps=100, global_step=10, logging_steps=2, save_steps=4)
    MetricsCallback().on_train_begin(args, state, TrainerControl())
    assert (state.logging_steps, state.save_steps) == (3, 5)


def test_raw_weights_come_back_after_an_error():
    model = nn.Linear(2, 2)
    ema = EmaCallback()
    ema.start(model)
    with torch.no_grad():
        model.weight.add_(1)
    raw = model.weight.clone()
    with pytest.raises(RuntimeError, match="boom"), ema.averaged(model):
        assert not torch.equal(model.weight, raw)
        raise RuntimeError("boom")
    assert torch.equal(model.weight, raw)


def test_ema_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="-1"):
        EmaCallback(half_life_images=-1)
    with pytest.raises(ValueError, match="warmup_ratio is 0"):
        EmaCallback(warmup_ratio=0)
    ema = EmaCallback()
    ema.resume_from = tmp_path
    with pytest.raises(FileNotFoundError, match="without EMA"):
        ema.start(nn.Linear(1, 1))


def test_no_two_micro_batches_share_a_seed():
    seeds = {step_seed(0, step, micro, rank) for step in range(20) for micro in range(3) for rank in range(3)}
    assert len(seeds) == 180
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(0, 4, 0, 1) != step_seed(1, 4, 0, 1)


def test_each_epoch_has_its_own_order_and_augmentation_belongs_to_the_sample():
    sampler = EpochSampler(50, seed=3)
    first = list(sampler)
    assert sorted(index for _, index in first) == list(range(50)) and first == list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [i for _, i in second] != [i for _, i in first] != list(range(50))
    draws = []
    data = AugmentedSamples(RawSamples(4), lambda sample, rng: draws.append(rng.random()) or sample, seed=3)
    for key in [(0, 1), (0, 2), (1, 1), (0, 1)]:
        data[key]
    assert draws[0] == draws[3] and len(set(draws)) == 3


def test_every_step_of_an_epoch_has_all_its_samples():
    sampler, whole, seen = EpochSampler(11, seed=3, step=4), EpochSampler(11, seed=3), set()
    assert len(sampler) == 8
    for epoch in range(12):
        sampler.set_epoch(epoch)
        whole.set_epoch(epoch)
        assert list(sampler) == list(whole)[:8]
        seen |= {index for _, index in sampler}
    assert seen == set(range(11))  # other samples are left out each time


def test_collator_keeps_units_and_masks_invalid_depth():
    samples = [RawSamples(2)[0], RawSamples(2)[1]]
    samples[0]["depth_m"] = np.full_like(samples[0]["depth_m"], 3.5)  # also where the mask says invalid
    batch = MapCollator(tiny_processor(), "depth", keep_raw=True)(samples)
    assert batch["pixel_values"].shape == (2, 3, 32, 48) and batch["ids"] == ["0-0", "0-1"]
    valid = torch.from_numpy(samples[0]["valid"])
    assert torch.equal(batch["labels"][0] > 0, valid) and batch["labels"][0][valid].unique().tolist() == [3.5]
    classes = MapCollator(tiny_processor(), "segmentation")(samples)["labels"]
    assert classes.dtype == torch.int64 and np.array_equal(classes[1].numpy(), samples[1]["labels"])
    with pytest.raises(ValueError, match="'x' has no 'depth_m'"):
        MapCollator(tiny_processor(), "depth")([{"image": samples[0]["image"], "id": "x"}])


def test_images_of_several_shapes_make_one_batch():
    images = [Image.new("RGB", size) for size in ((48, 32), (32, 48), (100, 40))]
    samples = [{"id": str(index), "image": one, "labels": np.zeros(one.size[::-1], np.uint8)} for index, one in enumerate(images)]
    batch = MapCollator(Noise2MapImageProcessor(size={"height": 32, "width": 64}), "segmentation")(samples)
    assert batch["pixel_values"].shape == (3, 3, 32, 64) and batch["labels"].shape == (3, 32, 64)


def test_decay_groups():
    model = tiny_model()
    decayed = set(decayed_parameters(model))
    everything = {name for name, _ in model.named_parameters()}
    kept_out = everything - decayed
    assert "decoder.layers.0.linear_in.weight" in decayed and "encoder.merge.conv.weight" in decayed
    for name in kept_out:  # every exempt parameter is a vector or the embedding table
        assert model.get_parameter(name).ndim < 2 or name.startswith("codec"), name
    assert {"decoder.layers.0.attention_norm.weight", "head.classifier.bias"} <= kept_out
    assert any(name.startswith("codec") for name in kept_out)
    assert set(decayed_parameters(model, "none")) == everything
    assert everything - set(decayed_parameters(model, [r"^encoder\.backbone.*normalization"])) == {
        name for name in everything if name.startswith("encoder.backbone") and "normalization" in name
    }
    with pytest.raises(ValueError, match=r"\(open"):
        decayed_parameters(model, ["(open"])


def test_scores_that_are_taken_again_stand_once(tmp_path):
    for record in ({"step": 10, "final_mIoU_3": 0.5}, {"step": 20, "loss": 1.0}, {"step": 20, "final_mIoU_3": 0.6}):
        append_metrics(tmp_path, record)
    rewind_metrics(tmp_path, 20)
    assert len(read_metrics(tmp_path)) == 3
    rewind_metrics(tmp_path, 20, rescored=True)
    assert read_metrics(tmp_path) == [{"step": 10, "final_mIoU_3": 0.5}, {"step": 20, "loss": 1.0}]


def test_metrics_file_survives_a_cut_and_rewinds(tmp_path):
    assert read_metrics(tmp_path) == []
    for step in (10, 20, 30):
        append_metrics(tmp_path, {"step": step, "loss": float("nan") if step == 10 else np.float32(0.5)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20, 30]
    assert read_metrics(tmp_path)[0]["loss"] is None
    rewind_metrics(tmp_path, 20)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 10, "loss": None}, {"step": 20, "loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text('nonsense\n{"step": 1}\n')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_metrics(tmp_path)


def test_newest_complete_checkpoint_is_chosen_by_number(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    for step in (900, 1000, 2000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (900, 1000):
        mark_complete(tmp_path / f"checkpoint-{step}")
    assert last_checkpoint(tmp_path).name == "checkpoint-1000"


def test_directories_are_replaced_whole(tmp_path):
    for name, content in (("new", "b"), ("target", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    replace_directory(tmp_path / "new", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "file").read_text() == "b"


def test_samples_of_depth_show_the_truth_beside_the_image_in_the_colors_of_reports():
    sample = RawSamples(1)[0]
    cells = sample_cells(tiny_model("depth").eval(), tiny_processor(), [sample], (2,), 0, np.zeros((0, 3), np.uint8))[0]
    assert [cell.title for cell in cells] == [str(sample["id"]), "truth", "2 steps", "uncertainty"]
    assert np.array_equal(cells[0].image, np.asarray(sample["image"]))
    known = np.where(sample["valid"], sample["depth_m"], 0)
    assert np.array_equal(cells[1].image, colorize_depth(known, *depth_range(known)))
    assert np.array_equal((cells[1].image == INVALID_COLOR).all(-1), ~sample["valid"])
    assert sample_panel(tiny_model("depth").eval(), tiny_processor(), [sample], (2,), 0).width > 4 * 48


def test_samples_of_classes_have_a_legend_and_may_differ_in_size():
    small, large = RawSamples(2)[0], RawSamples(2)[1]
    large = {**large, "image": large["image"].resize((96, 64)), "labels": large["labels"].repeat(2, 0).repeat(2, 1)}
    options = (tiny_processor(), [small, large], (1, 3), 0, RawSamples.palette)
    rows = sample_cells(tiny_model().eval(), *options)
    assert [len(row) for row in rows] == [5, 5] and [row[1].image.shape[:2] for row in rows] == [(32, 48), (64, 96)]
    colors = {tuple(color) for row in rows for cell in row[1:4] for color in cell.image.reshape(-1, 3).tolist()}
    assert colors <= {*map(tuple, RawSamples.palette.tolist()), (0, 0, 0)}
    panel = np.asarray(sample_panel(tiny_model().eval(), *options))
    legend = panel[-60:].reshape(-1, 3)
    assert all((legend == color).all(-1).any() for color in RawSamples.palette)
