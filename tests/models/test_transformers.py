"""Citizens of transformers: Auto classes and pipelines on a saved checkpoint, Trainer's contract."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from noise2map import (
    Noise2MapConfig,
    Noise2MapForDepthEstimation,
    Noise2MapForSemanticSegmentation,
    Noise2MapImageProcessor,
)
from noise2map.diffusion import image_generator
from noise2map.inference.predictor import Predictor

NAMES = {0: "floor", 1: "wall", 2: "sky", 3: "door", 4: "lamp"}


@pytest.fixture(scope="module")
def processor():
    return Noise2MapImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture(scope="module")
def segmentation_checkpoint(processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("segmentation")
    tiny_segmenter(num_labels=5, id2label=NAMES).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def depth_checkpoint(processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("depth")
    tiny_depth_model(depth_representation="log").save_pretrained(path)
    processor.save_pretrained(path)
    return path


def picture(width=90, height=70):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_auto_classes(segmentation_checkpoint, depth_checkpoint):
    assert type(AutoConfig.from_pretrained(segmentation_checkpoint)) is Noise2MapConfig
    assert type(AutoImageProcessor.from_pretrained(segmentation_checkpoint)) is Noise2MapImageProcessor
    segmenter = AutoModelForSemanticSegmentation.from_pretrained(segmentation_checkpoint)
    assert type(segmenter) is Noise2MapForSemanticSegmentation
    assert segmenter.config.id2label == NAMES
    assert type(AutoModelForDepthEstimation.from_pretrained(depth_checkpoint)) is Noise2MapForDepthEstimation
    config = AutoConfig.from_pretrained(segmentation_checkpoint)
    assert type(AutoModelForSemanticSegmentation.from_config(config)) is Noise2MapForSemanticSegmentation


def test_segmentation_pipeline(segmentation_checkpoint):
    torch.manual_seed(0)
    segments = pipeline("image-segmentation", model=str(segmentation_checkpoint))(picture())
    assert segments
    assert {segment["label"] for segment in segments} <= set(NAMES.values())
    masks = np.stack([np.asarray(segment["mask"]) for segment in segments])
    assert masks.shape[1:] == (70, 90)
    assert ((masks > 0).sum(0) == 1).all()  # every pixel belongs to one class


def test_segmentation_pipeline_gives_the_models_map(segmentation_checkpoint, processor):
    torch.manual_seed(0)
    segments = pipeline("image-segmentation", model=str(segmentation_checkpoint))(picture())
    model = Noise2MapForSemanticSegmentation.from_pretrained(segmentation_checkpoint)
    torch.manual_seed(0)
    with torch.no_grad():
        out = model(**processor(images=picture(), return_tensors="pt"))
    labels = processor.post_process_semantic_segmentation(out, target_sizes=[(70, 90)])[0]
    for segment in segments:
        mask = np.asarray(segment["mask"]) > 0
        expected = labels.numpy() == model.config.label2id[segment["label"]]
        assert (mask != expected).mean() < 1e-3


def test_depth_pipeline(depth_checkpoint, processor):
    torch.manual_seed(0)
    out = pipeline("depth-estimation", model=str(depth_checkpoint))(picture())
    assert out["depth"].size == (90, 70)
    assert tuple(out["predicted_depth"].shape) == (70, 90)
    model = Noise2MapForDepthEstimation.from_pretrained(depth_checkpoint)
    torch.manual_seed(0)
    with torch.no_grad():
        direct = model(**processor(images=picture(), return_tensors="pt"))
    expected = processor.post_process_depth_estimation(direct, target_sizes=[(70, 90)])[0]["predicted_depth"]
    assert torch.allclose(out["predicted_depth"], expected, rtol=1e-4)


def test_pipelines_take_lists(depth_checkpoint):
    out = pipeline("depth-estimation", model=str(depth_checkpoint))([picture(), picture(50, 60)])
    assert [item["depth"].size for item in out] == [(90, 70), (50, 60)]


def labels_of(segments, size):
    """Segments of the pipeline -> names of classes ``(H, W)``."""
    names = np.full(size, "", dtype=object)
    for segment in segments:
        names[np.asarray(segment["mask"]) > 0] = segment["label"]
    return names


@pytest.mark.parametrize("batch_size", [2, 3])
def test_pipelines_take_batches_of_any_sizes(segmentation_checkpoint, depth_checkpoint, batch_size):
    images = [picture(), picture(50, 60), picture(90, 72)]
    options = {"seed": 3, "num_inference_steps": 2, "ensemble_size": 2}
    pipe = pipeline("depth-estimation", model=str(depth_checkpoint))
    together = pipe(images, batch_size=batch_size, **options)
    assert [item["depth"].size for item in together] == [image.size for image in images]
    for image, item in zip(images, together):
        assert torch.allclose(item["predicted_depth"], pipe(image, **options)["predicted_depth"], rtol=1e-4)
    pipe = pipeline("image-segmentation", model=str(segmentation_checkpoint))
    for image, item in zip(images, pipe(images, batch_size=batch_size, **options)):
        size = image.size[::-1]
        assert (labels_of(item, size) != labels_of(pipe(image, **options), size)).mean() < 0.01


def test_decoding_options_reach_the_model_through_a_pipeline(depth_checkpoint, monkeypatch):
    calls = []
    forward = Noise2MapForDepthEstimation.forward
    monkeypatch.setattr(Noise2MapForDepthEstimation, "forward", lambda self, *a, **k: calls.append(k) or forward(self, *a, **k))
    pipe = pipeline("depth-estimation", model=str(depth_checkpoint), num_inference_steps=2)
    first, again = (pipe(picture(), ensemble_size=2, seed=5)["predicted_depth"] for _ in range(2))
    assert torch.equal(first, again)
    assert calls[0]["num_inference_steps"] == 2 and calls[0]["ensemble_size"] == 2
    assert not torch.equal(first, pipe(picture(), ensemble_size=2, seed=6)["predicted_depth"])
    pipe(picture(), num_inference_steps=4)
    assert calls[-1]["num_inference_steps"] == 4  # of the call, not of the pipeline
    drawn = [pipe(picture(), generator=torch.Generator().manual_seed(1))["predicted_depth"] for _ in range(2)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_steps": 3}, "no keyword 'num_steps'; expected num_inference_steps, ensemble_size"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"seed": 1, "generator": torch.Generator()}, "a seed and a generator"),
        ({"generator": [torch.Generator()] * 2}, "got 2 generators; expected one for each of the 1 images"),
    ],
)
def test_pipelines_refuse_what_cannot_be(segmentation_checkpoint, keywords, message):
    pipe = pipeline("image-segmentation", model=str(segmentation_checkpoint))
    with pytest.raises(ValueError, match=message):
        pipe(picture(), **keywords)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_averaged_steps_are_the_predictors_in_a_pipeline(segmentation_checkpoint, batch_size):
    """Probabilities are resized as such by both."""
    pictures = [picture(width, 70) for width in (90, 90, 75)]
    dials = {"num_inference_steps": 4, "average": "steps"}
    predictor = Predictor.from_pretrained(segmentation_checkpoint, "cpu")
    pipe = pipeline("image-segmentation", model=str(segmentation_checkpoint))
    names = np.array(list(NAMES.values()), dtype=object)
    for image, segments in zip(pictures, pipe(pictures, seed=7, batch_size=batch_size, **dials)):
        expected = names[predictor(image, seed=7, **dials)[0].labels]
        assert (labels_of(segments, image.size[::-1]) == expected).all()


@pytest.mark.parametrize("size", [(90, 70), (300, 600), (640, 360)])
def test_model_pipeline_and_predictor_give_the_same_maps(segmentation_checkpoint, depth_checkpoint, size):
    """The processor alone decides at which size an image is seen."""
    image = picture(*size)
    predictor = Predictor.from_pretrained(segmentation_checkpoint, "cpu")
    predicted = predictor(image, seed=7)[0].labels
    with torch.no_grad():
        out = predictor.model(**predictor.processor(images=image, return_tensors="pt"), generator=image_generator(7, "0"))
    by_hand = predictor.processor.post_process_semantic_segmentation(out, target_sizes=[image.size[::-1]])[0].numpy()
    assert (by_hand != predicted).mean() < 1e-3
    segments = pipeline("image-segmentation", model=str(segmentation_checkpoint))(image, seed=7)
    names = labels_of(segments, image.size[::-1])
    assert (names != np.array(list(NAMES.values()), dtype=object)[predicted]).mean() < 1e-3
    depth = pipeline("depth-estimation", model=str(depth_checkpoint))(image, seed=7)["predicted_depth"].numpy()
    expected = Predictor.from_pretrained(depth_checkpoint, "cpu")(image, seed=7)[0].depth_m
    np.testing.assert_allclose(depth, expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loading_in_another_type(segmentation_checkpoint, dtype):
    model = AutoModelForSemanticSegmentation.from_pretrained(segmentation_checkpoint, dtype=dtype)
    assert model.dtype == dtype
    with torch.no_grad():
        assert bool(torch.isfinite(model(pixel_values=torch.zeros(1, 3, 64, 64)).logits).all())


def test_fields_may_be_changed_when_loading(segmentation_checkpoint):
    model = Noise2MapForSemanticSegmentation.from_pretrained(segmentation_checkpoint, num_inference_steps=7, map_scale=0.5)
    assert model.config.num_inference_steps == 7
    assert model.codec.scale == 0.5
    with pytest.raises(ValueError, match="average is 'mean'"):
        Noise2MapForSemanticSegmentation.from_pretrained(segmentation_checkpoint, average="mean")


def test_missing_checkpoint(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        Noise2MapForSemanticSegmentation.from_pretrained(tmp_path / "nowhere")


def test_outputs_are_transformers_outputs(segmentation_checkpoint):
    model = Noise2MapForSemanticSegmentation.from_pretrained(segmentation_checkpoint)
    with torch.no_grad():
        out = model(pixel_values=torch.zeros(1, 3, 64, 64))
    assert out.loss is None
    assert torch.equal(out["logits"], out.logits)
    assert "logits" in out
    assert "steps" not in out


def test_trainer_divides_a_mean_by_its_accumulation_steps():
    """Trainer must not take the loss for a sum over items because `forward` accepts further keywords."""
    assert Noise2MapForSemanticSegmentation.accepts_loss_kwargs is False
    assert Noise2MapForDepthEstimation.accepts_loss_kwargs is False
