import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from tiny_models import BACKBONES, tiny_segmenter
from tiny_training import SIZE, RawSamples, tiny_model, tiny_processor
from transformers import TrainerCallback, TrainingArguments

from noise2map import MapTrainer, Noise2MapForSemanticSegmentation
from noise2map.data.transforms import Hide, default_transform
from noise2map.diffusion import image_generator
from noise2map.training import LearningRateCurve, last_checkpoint, read_metrics


def make_trainer(directory, task="segmentation", model=None, callbacks=(), options=None, **fields):
    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "seed": 5,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **fields,
    }
    options = {
        "eval_steps": (1, 3),
        "sample_images": 1,
        "ema_half_life_images": 4,
        "transform": default_transform(task),
        "curve": LearningRateCurve("cosine", iterations=6, warmup_iterations=2, warmup_ratio=0.1),
        **(options or {}),
    }
    return MapTrainer(
        model if model is not None else tiny_model(task),
        TrainingArguments(str(directory), **arguments),
        train_dataset=RawSamples(7),
        eval_dataset=RawSamples(3, seed=1),
        processing_class=tiny_processor(),
        callbacks=callbacks,
        **options,
    )


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "hiera"])  # which takes pictures of one size
def test_every_backbone_is_resumed_whole(tmp_path, backbone):
    """Swin's weights are stored under other names than the model's own; a resumed run must find them all the same."""
    fields = {"max_steps": 2, "save_steps": 1, "eval_strategy": "no", "options": {"sample_images": 0, "ema_half_life_images": None}}
    whole = make_trainer(tmp_path, model=tiny_segmenter(backbone, num_labels=3), **fields)
    whole.train()
    curve = losses(tmp_path)
    (tmp_path / "checkpoint-2" / "complete").unlink()
    resumed = make_trainer(tmp_path, model=tiny_segmenter(backbone, seed=9, num_labels=3), **fields)
    resumed.train(resume_from_checkpoint=True)
    assert losses(tmp_path) == curve and len(curve) == 2
    assert_same_weights(weights(resumed.model), weights(whole.model))


def losses(directory):
    return {record["step"]: record["loss"] for record in read_metrics(directory) if "loss" in record}


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


class DieAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Six uninterrupted steps; epochs end at steps 3 and 6."""
    directory = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(directory)
    trainer.train()
    with trainer.averaged_weights():
        averaged = weights(trainer.model)
    return directory, trainer, averaged


@pytest.mark.parametrize("died_at, goes_on_from", [(3, 2), (5, 4)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, whole_run, died_at, goes_on_from):
    whole_directory, whole, averaged = whole_run
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, callbacks=[DieAt(died_at)]).train()
    torch.manual_seed(99)  # whatever the process did before must not matter
    resumed = make_trainer(tmp_path, model=tiny_model(use_auxiliary_head=True))
    assert last_checkpoint(tmp_path).name == f"checkpoint-{goes_on_from}"
    resumed.train(resume_from_checkpoint=True)
    assert losses(tmp_path) == losses(whole_directory)
    assert len(losses(tmp_path)) == 6
    assert_same_weights(weights(resumed.model), weights(whole.model))
    with resumed.averaged_weights():
        assert_same_weights(weights(resumed.model), averaged)
    scores = [[r["eval_mIoU_3"] for r in read_metrics(d) if "eval_mIoU_3" in r] for d in (tmp_path, whole_directory)]
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_a_checkpoint_cut_off_by_a_crash_is_passed_over(tmp_path, whole_run):
    directory = tmp_path / "run"
    shutil.copytree(whole_run[0], directory)
    newest = last_checkpoint(directory)
    assert newest.name == "checkpoint-6"
    (newest / "complete").unlink()
    assert last_checkpoint(directory).name == "checkpoint-4"
    with pytest.raises(ValueError, match="no complete checkpoint"):
        make_trainer(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_run_directory_holds_what_it_promises(whole_run):
    directory, _, _ = whole_run
    assert json.loads((directory / "config.json").read_text())["model"]["hidden_size"] == 16
    rates = [record["learning_rate"] for record in read_metrics(directory) if "loss" in record]
    curve = LearningRateCurve("cosine", iterations=6, warmup_iterations=2, warmup_ratio=0.1)
    assert rates == pytest.approx([1e-2 * curve.factor(i) for i in range(6)])
    picture = Image.open(directory / "samples" / "step-000003.png")
    assert picture.width > 5 * SIZE[0]  # image, truth, two step counts, uncertainty
    assert (directory / "checkpoint-6" / "ema" / "model.safetensors").exists()


def test_the_noise_of_a_step_depends_on_seed_step_and_micro_batch(tmp_path, monkeypatch):
    drawn = []
    model = tiny_model()
    forward = model.forward

    def record(**inputs):
        drawn.append(torch.rand(1, generator=inputs["generator"]).item())
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", record)
    make_trainer(tmp_path, model=model, gradient_accumulation_steps=2, max_steps=2, eval_strategy="no").train()
    assert len(drawn) == 4  # an epoch's third batch fills no step of two
    assert len(set(drawn)) == 4


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path):
    batches = []
    for workers in (0, 2):
        trainer = make_trainer(tmp_path, dataloader_num_workers=workers)
        trainer.sampler.set_epoch(2)
        batches.append([batch["pixel_values"] for batch in trainer.get_train_dataloader()])
    assert len(batches[0]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_the_model_does_not_see_what_is_hidden(tmp_path):
    seen = []
    model = tiny_model()
    forward = model.forward
    model.forward = lambda **inputs: (seen.append(set(inputs)), forward(**inputs))[1]
    trainer = make_trainer(tmp_path, model=model, max_steps=1, eval_strategy="no", options={"transform": Hide("window")})
    assert next(iter(trainer.get_train_dataloader()))["hidden"].any()
    trainer.train()
    assert seen == [{"pixel_values", "labels", "generator"}]


def test_accumulation_takes_the_mean_over_micro_batches(tmp_path):
    """Two micro-batches of zero learning rate: the logged loss is the mean of the model's own losses."""
    seen = []
    model = tiny_model()
    forward = model.forward
    model.forward = lambda **inputs: (seen.append(out := forward(**inputs)), out)[1]
    trainer = make_trainer(tmp_path, model=model, gradient_accumulation_steps=2, max_steps=1, eval_strategy="no")
    trainer.train()
    assert losses(tmp_path)[1] == pytest.approx(np.mean([out.loss.item() for out in seen]), rel=1e-6)


def test_evaluation_is_the_mean_iou_of_single_images(whole_run):
    """Against one image at a time through ``model(...)`` and a confusion matrix made by hand, in a batch of another size."""
    _, trainer, averaged = whole_run
    raw = weights(trainer.model)
    trainer.args.per_device_eval_batch_size = 3
    scores = trainer.evaluate()
    assert_same_weights(weights(trainer.model), raw)

    model = tiny_model()
    model.load_state_dict(averaged)
    model.eval()
    table = np.zeros((3, 3))
    for index in range(3):
        sample = RawSamples(3, seed=1)[index]
        inputs = tiny_processor()(images=sample["image"], return_tensors="pt")
        with torch.no_grad():
            features = model.encode_image(inputs["pixel_values"])
            out = model.decode_map(features, num_inference_steps=3, generator=image_generator(5, sample["id"]))
        logits = torch.nn.functional.interpolate(out.logits, size=SIZE[::-1], mode="bilinear", align_corners=False)
        known = sample["labels"] != 255
        np.add.at(table, (sample["labels"][known], logits.argmax(1)[0].numpy()[known]), 1)
    union = table.sum(0) + table.sum(1) - table.diagonal()
    with np.errstate(invalid="ignore"):
        assert scores["eval_mIoU_3"] == pytest.approx(np.nanmean(table.diagonal() / union), abs=1e-6)


def test_final_export_is_the_average_and_loads(tmp_path, whole_run):
    _, trainer, averaged = whole_run
    target = trainer.export_final(tmp_path / "final")
    assert_same_weights(weights(Noise2MapForSemanticSegmentation.from_pretrained(target)), averaged)
    (target / "old").write_text("from an earlier export")
    trainer.export_final(target)
    assert not (target / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (target / "preprocessor_config.json").exists()


def test_depth_without_diffusion_in_bf16_trains_and_is_evaluated_at_one_call(tmp_path):
    trainer = make_trainer(tmp_path, task="depth", model=tiny_model("depth", diffusion=False), bf16=True, max_steps=3)
    trainer.train()
    scores = [record for record in read_metrics(tmp_path) if "eval_abs_rel_1" in record][-1]
    assert np.isfinite(scores["eval_abs_rel_1"]) and "eval_abs_rel_3" not in scores
    assert all(np.isfinite(loss) for loss in losses(tmp_path).values())


def test_training_learns(tmp_path):
    """The class is the color: after a few dozen steps the tiny model must beat its start by far."""
    trainer = make_trainer(
        tmp_path, max_steps=40, eval_strategy="no", save_strategy="no", options={"curve": None, "transform": None}
    )
    before = trainer.evaluate()["eval_mIoU_1"]
    trainer.train()
    assert trainer.evaluate()["eval_mIoU_1"] > max(0.5, before + 0.2)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.head.classifier.weight.fill_(float("nan"))
    trainer = make_trainer(tmp_path, model=model, eval_strategy="no", logging_nan_inf_filter=False)
    with pytest.raises(ValueError, match="training loss is nan at step 1"):
        trainer.train()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"processing_class": None}, "image processor"),
        ({"eval_steps": (0,)}, r"\(0,\)"),
        ({"no_decay": "biases"}, "biases"),
    ],
)
def test_bad_arguments_are_named(tmp_path, change, message):
    options = {"processing_class": tiny_processor(), "train_dataset": RawSamples(8), **change}
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1)
    with pytest.raises(ValueError, match=message):
        MapTrainer(tiny_model(), arguments, **options).train()


def test_too_few_samples_for_a_batch(tmp_path):
    with pytest.raises(ValueError, match="7 samples"):
        make_trainer(tmp_path, per_device_train_batch_size=8).train()


def full_disk(*arguments, **keywords):
    raise OSError(28, "No space left on device")


def full_disk_of_torch(*arguments, **keywords):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0")


def full_disk_of_safetensors(*arguments, **keywords):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "where, error",
    [
        ("torch.save", full_disk_of_torch),
        ("torch.save", full_disk),
        ("safetensors.torch.save_file", full_disk_of_safetensors),
        ("noise2map.training.seeded_trainer.mark_complete", full_disk),
    ],
)
def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch, where, error):
    """The disk is full at the second checkpoint; although one is to be kept, the first survives, and the run goes on from it."""
    broken = []

    class FillDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4 and not broken:
                monkeypatch.setattr(where, error)
                broken.append(state.global_step)

    fields = {"max_steps": 4, "eval_strategy": "no", "save_total_limit": 1}
    with pytest.raises(OSError, match=r"checkpoint-4 could not be written .*checkpoint-2 is whole") as raised:
        make_trainer(tmp_path / "run", callbacks=[FillDisk()], **fields).train()
    assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    torch.set_num_threads(1)
    resumed, whole = make_trainer(tmp_path / "run", **fields), make_trainer(tmp_path / "whole", **fields)
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 4
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]  # as many as are to be kept


def test_an_error_that_is_no_full_disk_stays_what_it_is(tmp_path, monkeypatch):
    def broken(*arguments, **keywords):
        raise RuntimeError("something else")

    monkeypatch.setattr("torch.save", broken)
    with pytest.raises(RuntimeError, match="something else"):
        make_trainer(tmp_path, max_steps=2, eval_strategy="no").train()


def test_the_log_on_the_screen_is_numbers_with_names(tmp_path, capsys):
    make_trainer(tmp_path, max_steps=3, disable_tqdm=False).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 3: ")]
    assert len(lines) == 2 and "loss " in lines[0] and "mIoU_3 " in lines[1]
    assert not any(mark in line for line in lines for mark in "{}'\"")


class Spoil(TrainerCallback):
    """Makes a weight NaN after a step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4:
            with torch.no_grad():
                model.head.classifier.weight[0, 0] = float("nan")


@pytest.mark.parametrize("saved_every", [5, 6])
def test_weights_that_are_no_numbers_are_never_kept(tmp_path, saved_every):
    """The loss is looked at where it is logged: what happened after the last record was exported."""
    fields = {"eval_strategy": "no", "logging_steps": 20, "save_steps": saved_every}
    trainer = make_trainer(tmp_path, callbacks=[Spoil()], **fields)
    with pytest.raises(ValueError, match=rf"holds NaN or infinite weights at step {saved_every}; lower the learning rate"):
        trainer.train()
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="holds NaN or infinite weights"):
        trainer.export_final()
    assert not (tmp_path / "final").exists()


def test_a_new_run_is_not_mixed_with_an_earlier_one(tmp_path, monkeypatch):
    fields = {"eval_strategy": "no", "max_steps": 2, "save_steps": 1}
    make_trainer(tmp_path, **fields).train()
    before = losses(tmp_path)
    with pytest.raises(ValueError, match="holds checkpoint-2 of an earlier run; expected resume_from_checkpoint=True"):
        make_trainer(tmp_path, **fields).train()
    assert losses(tmp_path) == before
    (tmp_path / "checkpoint-2").rename(tmp_path / "best-checkpoint-2")
    assert last_checkpoint(tmp_path).name == "checkpoint-1"  # a copy under another name is none of the run's
    (tmp_path / "best-checkpoint-2").rename(tmp_path / "checkpoint-2")

    def killed(*args, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, **fields).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert last_checkpoint(tmp_path).name == "checkpoint-1"  # what is being written anew is not whole


def test_a_longer_run_has_the_rates_of_its_own_curve_from_its_first_step(tmp_path):
    """The checkpoint of a run that was to end there has a rate of nothing."""

    def rates(steps):
        curve = LearningRateCurve("poly", iterations=steps, warmup_iterations=0)
        trainer = make_trainer(tmp_path, eval_strategy="no", max_steps=steps, options={"curve": curve})
        trainer.train(resume_from_checkpoint=steps > 4)
        return [record["learning_rate"] for record in read_metrics(tmp_path) if "learning_rate" in record]

    assert rates(4) == pytest.approx([1e-2 * (1 - step / 4) for step in (0, 1, 2, 3)])
    assert rates(8)[4:] == pytest.approx([1e-2 * (1 - step / 8) for step in (4, 5, 6, 7)])
