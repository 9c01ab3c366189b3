"""Decoders trained on a frozen encoder and on features that are kept on disk."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny_training import RawSamples, tiny_model, tiny_processor
from transformers import TrainerCallback, TrainingArguments

from noise2map.data.transforms import Hide, HorizontalFlip
from noise2map.training import LearningRateCurve, load_recipe
from noise2map.training.maps import feature_cache
from noise2map.training.maps.feature_cache import FeatureCache, Views, fingerprint_of
from noise2map.training.maps.frozen_encoder import FrozenEncoderTrainer

COUNT = 6


def make_trainer(directory, cache=None, model=None, seed=5, views=None, **options):
    arguments = TrainingArguments(
        str(directory), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, save_steps=2, seed=seed,
        use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    return FrozenEncoderTrainer(
        model or tiny_model(),
        arguments,
        cache_folder=cache,
        views=views or Views(2, True),
        train_dataset=RawSamples(COUNT),
        eval_dataset=RawSamples(2, seed=1),
        processing_class=tiny_processor(),
        curve=LearningRateCurve("cosine", iterations=4, warmup_iterations=1),
        sample_images=0,
        ema_half_life_images=4,
        **options,
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return {name for name, tensor in first.items() if torch.equal(tensor, second[name])}


class DieAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("cached", [False, True])
def test_all_but_the_encoder_learns(tmp_path, cached):
    trainer = make_trainer(tmp_path / "run", tmp_path / "cache" if cached else None, transform=HorizontalFlip(0.5))
    before = weights(trainer.model)
    trainer.train()
    kept = same(before, trainer.model.state_dict())
    assert {name for name in before if name.startswith("encoder.")} <= kept
    assert "head.classifier.weight" not in kept and "decoder.projection.weight" not in kept
    final = trainer.export_final()
    loaded = type(trainer.model).from_pretrained(final)
    assert same(before, loaded.state_dict()) == kept  # the encoder is in the exported model


def test_cached_features_are_those_of_the_views(tmp_path):
    trainer = make_trainer(tmp_path / "run", tmp_path / "cache")
    model, processor = trainer.model.eval(), tiny_processor()
    for index in (0, 3):
        sample = RawSamples(COUNT)[index]
        for view, image in enumerate((sample["image"], sample["image"].transpose(0))):
            with torch.no_grad():
                expected = model.encode_image(processor(image, return_tensors="pt")["pixel_values"])[0]
            assert torch.allclose(trainer.cache[index, view].float(), expected, rtol=2**-7, atol=1e-3)
    drawn = [trainer.training_samples()[epoch, 2] for epoch in range(9)]
    sample = next(one for one in drawn if one["image"] != RawSamples(COUNT)[2]["image"])
    assert np.array_equal(sample["labels"], RawSamples(COUNT)[2]["labels"][:, ::-1])
    assert torch.equal(sample["features"], trainer.cache[2, 1])


def test_images_are_encoded_once_for_all_runs(tmp_path, monkeypatch):
    make_trainer(tmp_path / "first", tmp_path / "cache")
    monkeypatch.setattr(FrozenEncoderTrainer, "_encode", lambda self, samples: pytest.fail("encoded again"))
    trainer = make_trainer(tmp_path / "second", tmp_path / "cache", seed=6)
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps > 0


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path):
    whole = make_trainer(tmp_path / "whole", tmp_path / "cache")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "broken", tmp_path / "cache", callbacks=[DieAt()]).train()
    resumed = make_trainer(tmp_path / "broken", tmp_path / "cache")
    resumed.train(resume_from_checkpoint=True)
    assert len(same(whole.model.state_dict(), resumed.model.state_dict())) == len(whole.model.state_dict())


def test_encoding_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_CHUNK", 2)
    whole = make_trainer(tmp_path / "run", tmp_path / "whole").cache
    encode, calls = FrozenEncoderTrainer._encode, []

    def dying(self, samples):
        calls.append(len(samples))
        if len(calls) == 4:  # one for the shape, then two views of two images
            raise KeyboardInterrupt
        return encode(self, samples)

    monkeypatch.setattr(FrozenEncoderTrainer, "_encode", dying)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "run", tmp_path / "cache")
    assert json.loads((tmp_path / "cache" / "config.json").read_text())["done"] == 2
    monkeypatch.setattr(FrozenEncoderTrainer, "_encode", lambda self, samples: calls.append(0) or encode(self, samples))
    resumed = make_trainer(tmp_path / "run", tmp_path / "cache").cache
    assert calls.count(0) == 1 + 2 * 2
    assert all(torch.equal(whole[index, view], resumed[index, view]) for index in range(COUNT) for view in range(2))


def test_features_of_something_else_are_refused(tmp_path):
    make_trainer(tmp_path / "run", tmp_path / "cache")
    other = tiny_model()
    with torch.no_grad():
        other.encoder.merge.conv.weight[0, 0] += 1e-3
    for change in ({"model": other}, {"views": Views(1, True)}, {"views": Views(2, False)}):
        with pytest.raises(ValueError, match="another encoder, other images or other views"):
            make_trainer(tmp_path / "run", tmp_path / "cache", **change)


def test_views_depend_on_image_and_number_alone():
    views = Views(4, True, lambda sample, rng: {**sample, "draw": rng.random()})
    sample = RawSamples(1)[0]
    draws = {(index, view): views(sample, index, view)["draw"] for index in range(3) for view in range(4)}
    assert len(set(draws.values())) == 12
    assert views(sample, 2, 1)["draw"] == draws[2, 1]


def test_covered_views_keep_their_masks(tmp_path):
    trainer = make_trainer(tmp_path / "run", tmp_path / "cache", views=Views(3, True, Hide("rectangle", 1.0)))
    samples = [trainer.training_samples()[epoch, 1] for epoch in range(9)]
    masks = {one["hidden"].tobytes() for one in samples}
    assert len(masks) == 3 and all(one["hidden"].any() for one in samples)
    model = trainer.model.eval()
    with torch.no_grad():
        pixels = tiny_processor()(samples[0]["image"], return_tensors="pt")["pixel_values"]
        assert torch.allclose(samples[0]["features"].float(), model.encode_image(pixels)[0], rtol=2**-7, atol=1e-3)
    trainer.train()  # masks are no input of the model


def test_recipes_refuse_what_cannot_be_cached():
    changes = ["model.freeze_encoder=true", "train.cache_features=cache", "data.crop_scale=none", "data.photometric=0"]
    assert load_recipe("freedoom-segmentation-tiny", changes).train.cache_views == 2
    for change, message in (
        ("model.freeze_encoder=false", r"model\.freeze_encoder true"),
        ("data.photometric=0.2", r"data\.photometric is 0\.2; expected 0"),
        ("data.crop_scale=[0.7, 1.0]", r"data\.crop_scale is .* expected none"),
        ("train.cache_views=0", r"train\.cache_views is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe("freedoom-segmentation-tiny", [*changes, change])
    with pytest.raises(ValueError, match=r"model\.freeze_encoder true"):
        load_recipe("freedoom-bev-camera-tiny", ["train.cache_features=cache"])


def test_a_cache_is_read_by_number(tmp_path):
    cache = FeatureCache(tmp_path, lambda samples: torch.full((len(samples), 2, 1, 3), 0.5), RawSamples(3), Views(1, False), "mark")
    assert cache[2, 0].shape == (2, 1, 3) and cache[2, 0].dtype == torch.bfloat16


def test_processes_of_one_run_wait_for_the_one_that_fills_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_PATIENCE_S", 0.01)
    filling, go_on, encoded = threading.Event(), threading.Event(), []

    def encode(samples):
        encoded.append(len(samples))
        filling.set()
        assert go_on.wait(60)
        return torch.full((len(samples), 2, 1, 3), float(len(encoded)))

    def cache():
        return FeatureCache(tmp_path, encode, RawSamples(3), Views(1, False), "mark")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(cache)
        assert filling.wait(60)
        with pytest.raises(BlockingIOError, match="another process"):  # of another run
            cache()
        monkeypatch.setenv("WORLD_SIZE", "2")
        second = pool.submit(cache)
        assert not second.done()
        go_on.set()
        one, two = first.result(60), second.result(60)
    assert encoded == [1, 3]  # the shape of one, then all: once
    assert all(torch.equal(one[index, 0], two[index, 0]) for index in range(3))


def test_windows_of_cached_features_lie_where_their_maps_do(tmp_path):
    """Features that say where they are: each cell holds its number, so a window of features names the pixels it must come with."""
    trainer = make_trainer(tmp_path / "run", tmp_path / "cache", views=Views(1, False), window=(24, 16))
    raw = RawSamples(COUNT)[1]
    height, width = raw["labels"].shape
    numbers = torch.arange(height // 4 * width // 4).view(1, height // 4, width // 4)
    seen = set()
    for epoch in range(6):
        samples = trainer.training_samples()
        samples.cache = _Numbers(samples.cache.views, numbers)
        sample = samples[epoch, 1]
        top, left = divmod(int(sample["features"][0, 0, 0]), width // 4)
        assert sample["features"].shape == (1, 4, 6) and sample["image"].size == (24, 16)
        assert torch.equal(sample["features"], numbers[:, top : top + 4, left : left + 6])
        assert np.array_equal(sample["labels"], raw["labels"][4 * top : 4 * top + 16, 4 * left : 4 * left + 24])
        seen.add((top, left))
        assert torch.equal(samples[epoch, 1]["features"], sample["features"])  # a function of epoch and index
    assert len(seen) > 1
    trainer.train()


class _Numbers:
    def __init__(self, views, numbers):
        self.views, self.numbers = views, numbers

    def __getitem__(self, place):
        return self.numbers


def test_a_window_larger_than_the_image_is_refused(tmp_path):
    trainer = make_trainer(tmp_path / "run", tmp_path / "cache", window=(64, 16))
    with pytest.raises(ValueError, match=r"train\.cache_window is 64x16; expected at most the size of sample '0-0', 48x32"):
        trainer.training_samples()[0, 0]


def test_windows_need_a_cache_and_whole_cells():
    with pytest.raises(ValueError, match=r"train\.cache_window is '80x60'; expected none without a cache"):
        load_recipe("freedoom-segmentation-tiny", ["train.cache_window=80x60"])
    with pytest.raises(ValueError, match=r"train\.cache_window is '80x62'; expected multiples of 4 pixels"):
        load_recipe("decoders/segmentation-published", ["train.cache_window=80x62"])


def test_features_name_the_layers_and_all_images_that_they_depend_on():
    """Numbers of groups have no weights, and only some samples are looked at."""
    fingerprints = set()
    for groups, changed in ((4, None), (8, None), (4, 50)):
        torch.manual_seed(0)
        encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.GroupNorm(groups, 8))
        data = RawSamples(100)
        data.ids = [f"image-{index if index != changed else 1000}" for index in range(100)]
        fingerprints.add(fingerprint_of(encoder, tiny_processor(), data, Views(1, False)))
    assert len(fingerprints) == 3
