"""The experiment on models of which it is known what they do with their map."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from official_checkpoints import DEPTH, small_weights
from PIL import Image
from transformers import ConvNextConfig

from noise2map.cli import main
from noise2map.convert.ddp import load_official_ddp
from noise2map.convert.ddp_keys import rename, split_parts
from noise2map.data import load_samples
from noise2map.data.subsets import Subset
from noise2map.diffusion import image_generator
from noise2map.diffusion.ensemble import draw_noise, fold
from noise2map.diffusion.fields import multi_resolution_noise
from noise2map.diffusion.process import add_noise
from noise2map.evaluation.experiments.map_use import MapUseOptions, _level_rows, run_map_use
from noise2map.evaluation.experiments.runs import VARIANTS, run_variants
from noise2map.evaluation.experiments.single_calls import SingleCalls, sample_batches
from noise2map.models import (
    Noise2MapConfig,
    Noise2MapForDepthEstimation,
    Noise2MapForSemanticSegmentation,
    Noise2MapImageProcessor,
)
from noise2map.models.decoding import DecodingOptions

NAMES = load_samples("test", classes=8).id2label


def tiny(kind=Noise2MapForSemanticSegmentation, **fields):
    backbone = ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    sizes = {"hidden_size": 16, "group_norm_groups": 4, "decoder_layers": 1, "decoder_attention_heads": 4}
    sizes |= {"decoder_ffn_dim": 16, "time_embed_dim": 16, "use_auxiliary_head": False, "map_scale": 1.0}
    if kind is Noise2MapForSemanticSegmentation:
        fields |= {"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}}
    torch.manual_seed(0)
    return kind(Noise2MapConfig(backbone_config=backbone, **sizes, **fields)).eval()


def saved(model, folder):
    model.save_pretrained(folder)
    Noise2MapImageProcessor(size={"height": 120, "width": 160}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    """Logits of the network are near nothing; the matched filter adds what the map says."""
    model = tiny(map_encoding="one_hot", matched_filter=True, feedback="mean", time_difference=0.0, time_input="time")
    return saved(model, tmp_path_factory.mktemp("matched"))


def test_a_model_that_is_deaf_to_its_map_gets_the_same_from_any(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.decoder.projection.weight[:, model.decoder.feature_channels :] = 0
    options = MapUseOptions(
        model=saved(model, tmp_path), limit=4, batch_size=3, counts=(2,), levels=(1.0, 0.5), resamples=20, cluster="map"
    )
    report = run_map_use(options, progress=False)
    for t in options.levels:
        rows = [row for row in report.levels if row["t"] == t]
        assert len({round(row["loss"], 5) for row in rows}) == 1
        assert all(row["changed"] == 0 and row["gain_low"] == row["gain_high"] == 0 for row in rows)
        assert next(row for row in rows if row["shown"] == "truth")["sensitivity"] == 0
    assert report.verdict().startswith("The map is not read")
    # time is told to all but the frozen run and the first calls, and nothing else matters
    found = {row["protocol"]: row["mIoU"] for row in report.runs}
    assert len({found[f"2 calls: {variant}"] for variant in ("run", "zero start noise", "fresh noise")}) == 1
    assert found["2 calls: frozen time"] == found["2 calls: first calls averaged"] == found["1 call: run"]


def test_maps_that_nobody_names_are_refused_before_the_work(matched, tmp_path, monkeypatch):
    folder = tmp_path / "rooms"
    for kind in ("images", "maps"):
        (folder / kind).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(np.full((32, 48) if kind == "maps" else (32, 48, 3), index, np.uint8)).save(
                folder / kind / f"{index}.png"
            )
    (folder / "classes.json").write_text(json.dumps(list(NAMES.values())))
    monkeypatch.setattr(SingleCalls, "update", lambda *args: pytest.fail("worked before it looked"))
    with pytest.raises(ValueError, match="do not say of which map they are"):
        run_map_use(MapUseOptions(model=matched, dataset="folder", root=folder, cluster="map"), progress=False)


def test_a_matched_filter_reads_the_truth_and_is_misled_by_anothers(matched):
    report = run_map_use(MapUseOptions(model=matched, limit=5, counts=(), levels=(1.0, 0.5, 0.05), resamples=50), progress=False)
    rows = {(row["t"], row["shown"]): row for row in report.levels}
    first = rows[1.0, "noise"]["loss"]
    for t in (0.5, 0.05):  # at low levels pure noise is taken for a map, and the first call knows more
        row = rows[t, "truth"]
        assert row["gain"] == pytest.approx(first - row["loss"]) and 0 < row["gain_low"] <= row["gain"] <= row["gain_high"]
        assert rows[t, "another's truth"]["loss"] > first
    assert rows[0.05, "truth"]["mIoU"] > rows[0.05, "another's truth"]["mIoU"]
    assert rows[0.05, "truth"]["changed"] > 0.3 and rows[0.05, "truth"]["sensitivity"] > rows[1.0, "truth"]["sensitivity"]
    assert report.verdict().startswith("The map is read")


def test_losses_are_those_of_calls_made_by_hand():
    model, processor = tiny(), Noise2MapImageProcessor(size={"height": 120, "width": 160})
    data = Subset.evenly_spaced(load_samples("test", classes=8), 3)
    calls = SingleCalls(model, (0.4,), seed=5)
    for indices, batch in sample_batches(model, processor, data, 2):
        calls.update(indices, batch, processor)
    codes = []
    for index in range(3):
        batch = model_batch(processor, data[index])
        with torch.no_grad():
            features = model.encode_image(batch["pixel_values"])
            noise = draw_noise((model.codec.channels, 30, 40), [image_generator(5, data[index]["id"])])
            codes.append(model.encode_labels(batch["labels"], (30, 40)))
            other = codes[0] if index == 1 else codes[-2] if index == 2 else None
            alpha, sigma = model.schedule.alpha_sigma(torch.tensor([0.4]))
            for kind, x0 in (("truth", codes[-1]), ("another's truth", other)):
                if x0 is not None:
                    x_t = add_noise(x0, noise, alpha, sigma)
                    expected = model.loss(
                        model.predict_at(model.decoder.prepare(features), x_t, torch.tensor([0.4])), batch["labels"]
                    )
                    assert calls.results[0.4, kind].losses[index] == pytest.approx(expected.item(), rel=1e-5), (kind, index)


class OfSizes:
    """Images of given heights and widths, no map like another."""

    def __init__(self, *sizes):
        self.sizes, self.id2label = sizes, NAMES

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        pixels, labels = rng.integers(0, 256, (*self.sizes[index], 3)), rng.integers(0, len(NAMES), self.sizes[index])
        return {"id": str(index), "image": Image.fromarray(pixels.astype(np.uint8)), "labels": labels.astype(np.uint8)}


def test_no_image_is_shown_its_own_truth_as_anothers():
    """Of two sizes in turn, each in a batch of its own: the first of each size has no other, the next have the one before."""
    model, processor = tiny(), Noise2MapImageProcessor(do_resize=False)
    data, calls = OfSizes((64, 64), (64, 96), (64, 64), (64, 96)), SingleCalls(model, (0.4,), seed=5)
    codes = []
    for index in range(4):
        batch = model_batch(processor, data[index])
        calls.update([index], {**batch, "samples": [data[index]]}, processor)
        codes.append(model.encode_labels(batch["labels"], tuple(side // 4 for side in data.sizes[index])))
    found = calls.results[0.4, "another's truth"]
    assert np.isnan(found.losses).tolist() == np.isnan(found.changed).tolist() == [True, True, False, False]
    assert not np.isnan(calls.results[0.4, "truth"].losses).any()
    for index in (2, 3):
        batch = model_batch(processor, data[index])
        with torch.no_grad():
            features = model.encode_image(batch["pixel_values"])
            noise = draw_noise((model.codec.channels, *features.shape[-2:]), [image_generator(5, str(index))])
            x_t = add_noise(codes[index - 2], noise, *model.schedule.alpha_sigma(torch.tensor([0.4])))
            expected = model.loss(model.predict_at(model.decoder.prepare(features), x_t, torch.tensor([0.4])), batch["labels"])
        assert found.losses[index] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_rows_leave_out_images_without_another(count):
    model, processor = tiny(), Noise2MapImageProcessor(do_resize=False)
    data, calls = OfSizes(*((64, 64), (64, 96), (64, 64))[:count]), SingleCalls(model, (1.0, 0.4), seed=5)
    for index in range(count):
        calls.update([index], {**model_batch(processor, data[index]), "samples": [data[index]]}, processor)
    rows = {(row["t"], row["shown"]): row for row in _level_rows(calls, {}, 10, None)}
    row, losses = rows[0.4, "another's truth"], calls.results[0.4, "another's truth"].losses
    if count == 2:
        assert np.isnan([row["loss"], row["gain"], row["changed"]]).all()
    else:
        pure = min((calls.results[t, "noise"].losses for t in (0.4, 1.0)), key=np.mean)
        assert row["loss"] == pytest.approx(losses[2]) and row["gain"] == pytest.approx(pure[2] - losses[2])
    assert np.isfinite([rows[0.4, "truth"][name] for name in ("loss", "gain", "changed", "sensitivity")]).all()


def test_noise_channels_are_those_of_training(monkeypatch):
    """Channel ``i`` is constant over blocks of ``4^i`` cells."""
    fields = {"depth_representation": "log", "noise_channels": 2, "objective": "crps", "time_input": "time"}
    model, processor = tiny(Noise2MapForDepthEstimation, **fields), Noise2MapImageProcessor(do_resize=False)
    seen, predict_at = [], model.predict_at

    def recorded(context, x_t, t, latent=None):
        seen.append(latent)
        return predict_at(context, x_t, t, latent)

    monkeypatch.setattr(model, "predict_at", recorded)
    pixels, depth = torch.rand(1, 3, 64, 64), torch.full((1, 64, 64), 2.0)
    samples = [{"id": "a", "image": Image.new("RGB", (64, 64)), "depth_m": np.full((64, 64), 2, np.float32)}]
    SingleCalls(model, (1.0,), seed=5).update([0], {"pixel_values": pixels, "labels": depth, "samples": samples}, processor)
    expected = fold(multi_resolution_noise(2, 2, (16, 16), [after_start(model, "a")]))
    assert all(torch.equal(one, expected) for one in seen if one is not None) and seen[-1] is not None
    assert torch.equal(expected[:, 1], expected[:, 1, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))


def after_start(model, name):
    """The generator of an image after its start noise."""
    generator = image_generator(5, name)
    draw_noise((1, model.codec.channels, 16, 16), [generator])
    return generator


def model_batch(processor, sample):
    encoded = processor(images=[sample["image"]], segmentation_maps=[np.asarray(sample["labels"])], return_tensors="pt")
    return {"pixel_values": encoded["pixel_values"], "labels": torch.as_tensor(encoded["labels"])}


def test_variants_are_the_runs_that_they_say():
    model, options = tiny(time_difference=0.0), {"ensemble_size": 1, "average": "last", "sampler": "ddim", "sampling": "diffusion"}
    features, ids = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)), ["a", "b"]
    variants = {one.variant: one for one in list(run_variants(model.config, (3,), seed=4))[1:]}
    assert tuple(variants) == VARIANTS and variants["run"].name == "3 calls: run"
    with torch.no_grad():
        found = {name: one.decode(model, features, ids).logits for name, one in variants.items()}
        three = DecodingOptions(num_inference_steps=3, seed=4, **options)
        assert torch.equal(found["run"], three.decode(model, features, ids).logits)
        several = replace(three, num_inference_steps=1, ensemble_size=3)
        assert torch.equal(found["first calls averaged"], several.decode(model, features, ids).logits)
        nothing = three.decode(model, features, ids, noise=torch.zeros(2, 1, model.codec.channels, 8, 8)).logits
        assert torch.equal(found["zero start noise"], nothing)
        model.config.churn = 1.0
        assert torch.allclose(found["fresh noise"], three.decode(model, features, ids).logits, atol=1e-5)
    assert len({float(one.sum()) for one in found.values()}) == len(found)
    assert found["fresh noise, steps averaged"].exp().sum(1).allclose(torch.ones(2, 8, 8), atol=1e-4)  # mean probabilities


@pytest.mark.parametrize("objective", ["task", "crps"])
def test_depth_models_of_steps_and_of_samples(tmp_path, objective):
    fields = {"depth_representation": "log", "noise_channels": 4} if objective == "crps" else {}
    model = tiny(Noise2MapForDepthEstimation, min_depth=0.5, max_depth=40.0, objective=objective, time_input="time", **fields)
    report = run_map_use(
        MapUseOptions(model=saved(model, tmp_path), limit=2, counts=(2,), levels=(1.0, 0.3), resamples=10), progress=False
    )
    assert len(report.levels) == 2 * 5 and len(report.runs) == 1 + len(VARIANTS)
    assert all(np.isfinite(row["loss"]) and row["abs_rel"] > 0 for row in report.levels)


def test_a_model_without_diffusion_has_one_call(tmp_path):
    report = run_map_use(MapUseOptions(model=saved(tiny(diffusion=False), tmp_path), limit=2, resamples=10), progress=False)
    assert [(row["t"], row["shown"]) for row in report.levels] == [(1.0, "noise")] and len(report.runs) == 1
    assert "no map to read" in report.verdict()


def test_the_command_writes_tables_and_a_plot(matched, tmp_path, capsys):
    command = ["experiment", "map-use", matched, "--limit", "3", "--steps", "2", "--resamples", "10", "--hide", "rectangle"]
    with pytest.raises(SystemExit) as done:
        main([*command, "--out", str(tmp_path / "out")])
    assert done.value.code == 0
    assert "The map is" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "map_use.json").read_text())
    assert {"levels", "runs", "differences", "verdict"} == set(found)
    controls = [row for row in found["differences"] if row["other_protocol"] == "2 calls: first calls averaged"]
    assert {row["protocol"] for row in controls} == {f"2 calls: {one}" for one in VARIANTS if one != "first calls averaged"}
    assert (tmp_path / "out" / "levels.png").stat().st_size > 5000 and (tmp_path / "out" / "runs.csv").exists()


def shallow_weights():
    """A published depth model an eighth as wide, of two layers where it has six."""
    deep = re.compile(r"decode_head\.encoder\.layers\.[2-5]\..*|backbone\.stages\.2\.blocks\.[2-5]\..*")
    return {key: value for key, value in small_weights(DEPTH).items() if not deep.fullmatch(key)}


def public_layout(model):
    """The weights of a converted model under the names and in the layout of the file that it came from."""
    official, own = {}, model.state_dict()
    for key, value in shallow_weights().items():
        parts = model.conversion_report.used.get(key)
        if parts is None:  # computed from the window, not learnt
            official[key] = value
            continue
        # Numbers sent through the conversion tell where each one of ours came from.
        places = split_parts(rename(key), torch.arange(value.numel()).view(value.shape))
        order = torch.cat([places[name].flatten() for name in parts])
        official[key] = torch.empty_like(value)
        official[key].view(-1)[order] = torch.cat([own[name].flatten() for name in parts])
    return official


def test_a_converted_checkpoint_is_asked_like_the_model_that_it_was_made_from(tmp_path, capsys):
    """A published configuration trained here, written as public files are, comes back through the converter."""
    fields = {"max_depth": 40.0, "num_inference_steps": 3}
    model = load_official_ddp(shallow_weights(), **fields).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, generator = torch.optim.SGD(model.parameters(), 1e-3), torch.Generator().manual_seed(0)
    pixels, depth_m = torch.rand(2, 3, 64, 64, generator=generator), 0.5 + torch.rand(2, 64, 64, generator=generator)
    model(pixel_values=pixels, labels=depth_m, generator=generator).loss.backward()
    optimizer.step()
    assert sum(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()) > 0.8 * len(before)
    meta = {"config": "model = dict(type='DDP', timesteps=3, max_depth=40.0)"}
    torch.save({"meta": meta, "state_dict": public_layout(model)}, tmp_path / "public.pth")
    with pytest.raises(SystemExit) as done:
        main(["convert", "ddp", str(tmp_path / "public.pth"), "--out", str(tmp_path / "converted")])
    assert done.value.code == 0, capsys.readouterr().err
    model.eval().save_pretrained(tmp_path / "trained")
    Noise2MapImageProcessor(do_resize=False).save_pretrained(tmp_path / "trained")
    found = [
        run_map_use(MapUseOptions(model=str(tmp_path / name), limit=2, counts=(2,), levels=(0.3,), resamples=5), progress=False)
        for name in ("trained", "converted")
    ]
    for name in ("loss", "abs_rel", "sensitivity", "changed"):
        ours, theirs = ([row.get(name) for row in report.levels] for report in found)
        assert ours == pytest.approx(theirs, rel=1e-4, nan_ok=True), name
    assert [row["abs_rel"] for row in found[0].runs] == pytest.approx([row["abs_rel"] for row in found[1].runs], rel=1e-4)
    assert found[0].verdict() == found[1].verdict()


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="batch_size is 1; expected at least 2"):
        MapUseOptions(model="any", batch_size=1)
    with pytest.raises(ValueError, match="expected times from 1"):
        MapUseOptions(model="any", levels=(1.5,))


def test_every_variant_of_a_calibrated_model_is_calibrated():
    model = tiny(map_encoding="one_hot", matched_filter=True, feedback="mean", time_difference=0.0, time_input="time")
    features = model.encode_image(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for variant in run_variants(model.config, [3]):
        model.config.calibration = None
        with torch.no_grad():
            before = variant.decode(model, features, ["a"])
            model.config.calibration = {"temperature": 5.0}
            after = variant.decode(model, features, ["a"])
        expected = (before.logits.softmax(1).clamp(min=1e-12).log() / 5).softmax(1)
        assert torch.allclose(after.logits.softmax(1), expected, atol=1e-4), variant.name
        assert not torch.allclose(after.logits.softmax(1), before.logits.softmax(1), atol=1e-3), variant.name
