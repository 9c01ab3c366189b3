import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from noise2map.diffusion import image_generator
from noise2map.inference import memory
from noise2map.inference.memory import Workload, estimate_bytes, fitting_batch
from noise2map.inference.predictor import Predictor
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.decoding import DecodingOptions, PredictionOptions
from noise2map.models.image_processing import resized_argmax
from noise2map.models.resizing import resized_strips

PROCESSOR = {"size": {"shortest_edge": 48, "longest_edge": 256}}


def picture(height, width, seed=0):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def segmenter():
    return Predictor(tiny_segmenter(), Noise2MapImageProcessor(**PROCESSOR))


@pytest.fixture(scope="module")
def depther():
    return Predictor(tiny_depth_model(), Noise2MapImageProcessor(**PROCESSOR))


@pytest.fixture(params=["segmentation", "depth"])
def predictor(request, segmenter, depther):
    return segmenter if request.param == "segmentation" else depther


def the_map(prediction):
    return prediction.labels if prediction.labels is not None else prediction.depth_m


def test_maps_do_not_depend_on_batch_order_or_company(predictor):
    images = [picture(48, 64), picture(60, 50, 1), picture(48, 64, 2), picture(30, 200, 3)]
    ids = ["a.png", "b.png", "sub/c.png", "d.png"]
    options = PredictionOptions(num_inference_steps=2, ensemble_size=2)
    together = predictor(images, ids, options)
    order = [2, 0, 3, 1]
    shuffled = predictor([images[i] for i in order], [ids[i] for i in order], options, batch_size=2)
    for place, index in enumerate(order):
        alone = predictor(images[index], [ids[index]], options)[0]
        for other in (shuffled[place], alone):
            assert other.id == ids[index]
            np.testing.assert_allclose(the_map(other), the_map(together[index]), rtol=1e-4)
            np.testing.assert_allclose(other.uncertainty, together[index].uncertainty, atol=1e-4)


def test_the_noise_comes_from_seed_and_id(depther):
    image = picture(48, 64)
    first = depther([image, image], ["a", "b"])
    assert not np.allclose(first[0].depth_m, first[1].depth_m)
    again = depther(image, ["a"])[0]
    np.testing.assert_allclose(again.depth_m, first[0].depth_m, rtol=1e-4)
    other = depther(image, ["a"], seed=1)[0]
    assert not np.allclose(other.depth_m, again.depth_m)


def test_equals_processor_and_model_by_hand(segmenter):
    image = picture(48, 64)
    found = segmenter(image, ["x"], num_inference_steps=3, ensemble_size=2, average="steps", seed=7, every_uncertainty=True)[0]
    inputs = segmenter.processor(images=image, return_tensors="pt")
    with torch.no_grad():
        out = segmenter.model(
            **inputs, num_inference_steps=3, ensemble_size=2, average="steps", generator=[image_generator(7, "x")]
        )
    labels = segmenter.processor.post_process_semantic_segmentation(out, target_sizes=[(48, 64)])[0]
    uncertainty = segmenter.processor.post_process_uncertainty(out, target_sizes=[(48, 64)])[0]
    assert (found.labels == labels.numpy()).all()
    np.testing.assert_allclose(found.uncertainty, uncertainty.numpy(), atol=1e-6)
    assert found.uncertainty_kind == "entropy" and set(found.uncertainties) == set(out.uncertainties)
    assert found.num_steps == 3 and found.processed_size == (64, 48)


@pytest.mark.parametrize("size", [(1, 1), (100, 2000), (2000, 7), (33, 47)])
def test_any_size_comes_back_at_its_size(predictor, size):
    prediction = predictor(picture(*size), num_inference_steps=1, ensemble_size=2)[0]
    assert the_map(prediction).shape == size and prediction.uncertainty.shape == size
    assert prediction.uncertainty.min() >= 0 and prediction.uncertainty.max() <= 1
    if prediction.depth_m is not None:
        assert prediction.depth_m.min() > 0.4999 and prediction.depth_m.max() < 20.001


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "I;16"])
def test_any_mode_is_taken(segmenter, mode):
    image = picture(40, 50).convert("L" if mode == "I;16" else mode)
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image
    assert segmenter(image)[0].labels.shape == (40, 50)


def test_the_short_side_is_what_the_processor_says_and_the_ratio_kept(segmenter):
    assert segmenter.processed_size(640, 480) == (64, 48)
    assert segmenter.processed_size(480, 640) == (48, 64)
    assert segmenter.processed_size(640, 480, "native") == (640, 480)
    assert segmenter.processed_size(5, 480, "native") == (32, 480)
    assert segmenter.processed_size(640, 480, (96, 32)) == (96, 32)
    fixed = Predictor(segmenter.model, Noise2MapImageProcessor(size={"height": 120, "width": 160}))
    assert fixed.processed_size(160, 120) == (160, 120)
    assert fixed.processed_size(4000, 2000) == (240, 120)  # 160 x 120 would squash it
    asis = Predictor(segmenter.model, Noise2MapImageProcessor(do_resize=False))
    assert asis.processed_size(123, 45) == (123, 45)


def test_paths_arrays_and_images_give_the_same_map(segmenter, tmp_path):
    image = picture(48, 64)
    image.save(tmp_path / "a.png")
    expected = segmenter(image)[0].labels
    for thing in (str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(image), [np.asarray(image)]):
        found = segmenter(thing)
        assert len(found) == 1 and found[0].id == "0" and (found[0].labels == expected).all()
    with pytest.raises(ValueError, match="image is a NoneType; expected a Pillow image"):
        segmenter(None)
    with pytest.raises(FileNotFoundError, match="nothing"):
        segmenter("nothing.png")


def test_an_image_that_says_how_it_was_held_is_upright(segmenter, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(48, 64).save(tmp_path / "phone.png", exif=exif)
    with Image.open(tmp_path / "phone.png") as opened:
        lying = opened.size
        from_path, from_image = segmenter([tmp_path / "phone.png", opened], ["a", "a"])
        assert opened.size == lying  # what was given is as it was
    assert from_image.labels.shape == lying and np.array_equal(from_image.labels, from_path.labels)


def test_a_prediction_draws_itself(predictor, tmp_path):
    image = picture(48, 64)
    found = predictor(image, num_inference_steps=2, ensemble_size=2)[0]
    plain = found.plot()
    assert plain.width > 3 * 64 and np.asarray(image)[0, 0].tolist() in np.asarray(plain.convert("RGB")).reshape(-1, 3).tolist()
    with Image.open(BytesIO(found._repr_png_())) as shown:
        assert shown.format == "PNG" and shown.size == plain.size
    found.save(tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as shown:
        assert shown.size == plain.size
    found.save(tmp_path / "a.npz")
    maps = np.load(tmp_path / "a.npz")
    assert set(maps) == {"uncertainty", "labels" if found.labels is not None else "depth_m"}
    np.testing.assert_array_equal(maps[next(name for name in maps if name != "uncertainty")], the_map(found))
    with pytest.raises(ValueError, match=r"'\.abc'"):
        found.save(tmp_path / "a.abc")


def test_computed_maps_are_those_of_the_model(depther):
    image = picture(96, 64)
    found = depther(image, ["x"], num_inference_steps=2, ensemble_size=2, seed=3)[0]
    inputs = depther.processor(images=image, return_tensors="pt")
    with torch.no_grad():
        out = depther.model(**inputs, num_inference_steps=2, ensemble_size=2, generator=[image_generator(3, "x")])
    np.testing.assert_allclose(found.computed["depth_m"], out.predicted_depth[0].numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.computed["uncertainty"], out.uncertainty[0].numpy(), atol=1e-6)
    assert found.computed["depth_m"].shape == (72, 48) and found.depth_m.shape == (96, 64)


def test_sizes_that_are_asked_for_are_used(segmenter):
    prediction = segmenter(picture(48, 64), size=(96, 40))[0]
    assert prediction.processed_size == (96, 40) and prediction.labels.shape == (48, 64)
    assert segmenter(picture(48, 64), size=[96, 40])[0].processed_size == (96, 40)
    counted = segmenter(picture(48, 64), num_inference_steps=np.int64(1), ensemble_size=np.int32(2), seed=np.uint8(3))[0]
    assert np.array_equal(counted.labels, segmenter(picture(48, 64), num_inference_steps=1, ensemble_size=2, seed=3)[0].labels)
    assert json.dumps(PredictionOptions(num_inference_steps=np.int64(1), seed=np.int64(2)).dials)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; expected an integer from 1 to 1000 or 'auto'"),
        ({"num_inference_steps": "abc"}, "num_inference_steps is 'abc'"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"ensemble_size": -1}, "ensemble_size is -1"),
        ({"average": "mean"}, "average is 'mean'; expected one of 'last', 'steps'"),
        ({"sampler": "euler"}, "sampler is 'euler'"),
        ({"seed": 1.5}, "seed is 1.5; expected an integer"),
        ({"size": (16, 100)}, "at least 32"),
        ({"size": "huge"}, "'huge'"),
        ({"size": 64}, r"size must be \(width, height\), 'native' or None, got 64"),
        ({"size": {"height": 64, "width": 64}}, "size must be"),
        ({"size": [64]}, "size must be two whole numbers"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_impossible_dials_are_refused_before_any_work(segmenter, monkeypatch, choices, message):
    monkeypatch.setattr(segmenter.model, "encode_image", lambda *_: pytest.fail("heavy work began"))
    with pytest.raises(ValueError, match=message):
        segmenter(picture(48, 64), **choices)


def test_options_that_do_not_exist_are_named(segmenter):
    with pytest.raises(TypeError, match="Predictor has no option 'nope'; expected num_inference_steps"):
        segmenter(picture(48, 64), nope=1)
    plain = segmenter(picture(48, 64), options=DecodingOptions(num_inference_steps=2), size=(96, 40))[0]
    assert plain.num_steps == 2 and plain.processed_size == (96, 40)


def test_ids_must_match(segmenter):
    with pytest.raises(ValueError, match="1 images and 2 ids"):
        segmenter([picture(48, 64)], ["a", "b"])


def test_dials_default_to_the_checkpoint():
    model = tiny_segmenter(num_inference_steps=5, average="steps")
    found = PredictionOptions(ensemble_size=2).resolved(model.config)
    chosen = {"num_inference_steps": 5, "ensemble_size": 2, "average": "steps", "sampler": "ddim", "sampling": "diffusion"}
    assert found == PredictionOptions(**chosen, refine="all")


def test_a_model_without_diffusion_makes_one_step():
    predictor = Predictor(tiny_segmenter(diffusion=False), Noise2MapImageProcessor(**PROCESSOR))
    assert predictor(picture(48, 64))[0].num_steps == 1
    with pytest.raises(ValueError, match="without diffusion"):
        predictor(picture(48, 64), num_inference_steps=3)


def test_one_step_of_one_sample_of_depth_has_no_uncertainty(depther):
    assert depther(picture(48, 64), num_inference_steps=1, ensemble_size=1)[0].uncertainty is None


def test_auto_says_how_many_steps_it_took(segmenter):
    found = segmenter(picture(48, 64), num_inference_steps="auto")[0]
    assert 1 < found.num_steps <= segmenter.model.config.auto_max_steps


def test_half_precision_is_close():
    image = picture(48, 64)
    full = Predictor(tiny_depth_model(), Noise2MapImageProcessor(**PROCESSOR))(image)[0].depth_m
    half = Predictor(tiny_depth_model().to(torch.bfloat16), Noise2MapImageProcessor(**PROCESSOR))(image)[0].depth_m
    assert half.dtype == np.float32
    assert np.median(np.abs(half / full - 1)) < 0.05


@pytest.mark.parametrize("sizes", [[(37, 53)], [(8, 6)], [(3, 4)], [(8, 40)], [(32, 24), (50, 35)], [(5, 30), (20, 60)], []])
def test_strips_equal_one_enlargement(sizes):
    logits = torch.randn(7, 8, 6, generator=torch.Generator().manual_seed(0))
    whole = logits[None]
    for size in sizes:
        whole = functional.interpolate(whole, size=size, mode="bilinear", align_corners=False)
    strips = list(resized_strips(logits, *sizes, strip_floats=7 * whole.shape[-1] * 2))
    assert len(strips) == -(-whole.shape[-2] // 2)
    assert torch.allclose(torch.cat(strips, 1), whole[0], atol=1e-5)
    found, top = resized_argmax(logits, *sizes), whole[0].topk(2, dim=0).values
    assert ((found == whole[0].argmax(0)) | (top[0] - top[1] < 1e-5)).all()


def test_strips_of_whole_multiples_are_the_very_rows():
    logits = torch.randn(5, 9, 7, generator=torch.Generator().manual_seed(0))
    whole = functional.interpolate(logits[None], size=(36, 28), mode="bilinear", align_corners=False)[0]
    assert torch.equal(torch.cat(list(resized_strips(logits, (36, 28), strip_floats=5 * 28 * 3)), 1), whole)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a result of any operator has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        self.elements = max([self.elements, *(one.numel() for one in tree_leaves(out) if isinstance(one, torch.Tensor))])
        return out


@pytest.mark.parametrize("size", [(256, 256), (200, 300)])
def test_class_maps_never_take_all_scores_at_full_size(size):
    classes, side = 128, 256
    model = tiny_segmenter(num_labels=classes)
    predictor = Predictor(model, Noise2MapImageProcessor(size={"height": side, "width": side}))
    with LargestTensor() as largest:
        found = predictor(picture(*size), ["x"], num_inference_steps=2, seed=3)[0]
    assert largest.elements < classes * side * side * 0.6
    inputs = predictor.processor(images=picture(*size), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, num_inference_steps=2, generator=[image_generator(3, "x")]).logits
    logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
    top = logits.topk(2, dim=0).values
    assert ((torch.from_numpy(found.labels.astype(int)) == logits.argmax(0)) | (top[0] - top[1] < 1e-5)).all()
    p = logits.softmax(0)
    np.testing.assert_allclose(found.uncertainty, -(p * p.log()).sum(0).numpy() / np.log(classes), atol=1e-5)


def test_memory_grows_with_the_work_and_bounds_the_batch(monkeypatch):
    config = tiny_segmenter().config
    work = Workload(8, 480, 640, 1, 480 * 640)
    needed = estimate_bytes(config, replace(work, batch_size=1))
    assert estimate_bytes(config, replace(work, batch_size=1, ensemble_size=64)) > needed
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3.5 * needed / 0.85)
    assert fitting_batch(config, work, torch.device("cpu")) == 3
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed / 2)
    with pytest.raises(ValueError, match=r"640x480 pixels .* GiB are free"):
        fitting_batch(config, work, torch.device("cpu"))
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert fitting_batch(config, work, torch.device("cpu")) == 8


def test_an_image_that_cannot_fit_is_refused_before_it_is_tried(segmenter, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**20)
    monkeypatch.setattr(segmenter.model, "encode_image", lambda *_: pytest.fail("heavy work began"))
    with pytest.raises(ValueError, match="20000x2000"):
        segmenter(Image.new("RGB", (20000, 2000)), size="native")


@pytest.mark.parametrize("upsampling", ["bilinear", "convex"])
def test_a_predicted_scale_is_written_like_any_uncertainty(upsampling):
    from noise2map.inference.maps_on_disk import encode_prediction

    model = tiny_depth_model(objective="laplace", depth_representation="log", upsampling=upsampling)
    predictor = Predictor(model, Noise2MapImageProcessor(**PROCESSOR))
    options = PredictionOptions(num_inference_steps=1, size="native")
    (found,) = predictor(picture(48, 64), options=options)
    assert found.uncertainty_kind == "scale" and found.uncertainty.shape == found.depth_m.shape == (48, 64)
    record, files = encode_prediction(found, "room", model.config, options.resolved(model.config))
    assert record["uncertainty"]["kind"] == "scale"
    arrays = np.load(BytesIO(files[record["files"]["arrays"]]))
    np.testing.assert_allclose(arrays["uncertainty"], 1 - np.exp(-arrays["scale"]), atol=1e-5)
    assert record["files"]["panel"] in files
