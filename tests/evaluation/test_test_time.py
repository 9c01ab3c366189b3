"""Views of a picture: sizes, windows, shared noise, averages over scales and mirror images."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter
from torch.nn import functional

from noise2map.diffusion import image_generator
from noise2map.evaluation.test_time import (
    SCALES,
    AugmentedImage,
    TestTimeAugmentation,
    decode_view,
    decode_windows,
    encode_view,
    keep_ratio_size,
    resize_image,
    view_pixels,
    window_spans,
)
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.decoding import DecodingOptions, Protocol
from noise2map.models.denoising.ensembles import DecoderEnsemble
from noise2map.models.segmentation import MapSegmenterOutput


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("height, width", [(512, 683), (683, 512), (300, 3000), (1024, 2048), (64, 64)])
@pytest.mark.parametrize("frame", [(2048, 512), (2048, 1024)])
def test_pictures_are_fitted_into_the_frame(height, width, frame):
    new_height, new_width = keep_ratio_size(height, width, frame)
    long, short = max(new_height, new_width), min(new_height, new_width)
    assert long <= frame[0] and short <= frame[1] and (long == frame[0] or short == frame[1])
    assert (new_height > new_width) == (height > width)
    assert new_height == pytest.approx(height * new_width / width, abs=height / width + 1)


def test_resizing_is_bilinear_between_pixel_centres_without_smoothing():
    image = picture(23, 17)
    values = np.asarray(image, np.float64)
    found = np.asarray(resize_image(image, (9, 40)), np.float64)
    expected = np.zeros((9, 40, 3))
    for row in range(9):
        for column in range(40):
            y = np.clip((row + 0.5) * 17 / 9 - 0.5, 0, 16)
            x = np.clip((column + 0.5) * 23 / 40 - 0.5, 0, 22)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 16), min(left + 1, 22)
            upper = values[top, left] * (1 - x + left) + values[top, right] * (x - left)
            lower = values[bottom, left] * (1 - x + left) + values[bottom, right] * (x - left)
            expected[row, column] = upper * (1 - y + top) + lower * (y - top)
    assert np.abs(found - expected).max() <= 0.51
    assert resize_image(image, (17, 23)) is image


@pytest.mark.parametrize("length", [64, 65, 67, 96, 100, 131, 500])
@pytest.mark.parametrize("window, stride", [(64, 32), (64, 64), (96, 64)])
def test_windows_cover_every_pixel_and_start_on_the_grid_of_the_map(length, window, stride):
    spans = window_spans(length, window, stride)
    covered = np.zeros(length, int)
    for first, end in spans:
        assert first % 4 == 0 and (end - first == min(window, length) or (end == length and 0 <= end - first - window < 4))
        covered[first:end] += 1
    assert covered.min() >= 1 and spans[-1][1] == length and len({first for first, _ in spans}) == len(spans)
    assert all(second[0] - first[0] <= stride for first, second in itertools.pairwise(spans))


class PointwiseModel:
    """A model whose map at a pixel depends on the picture and the noise there and on nothing around."""

    task = "segmentation"
    device = torch.device("cpu")
    codec = SimpleNamespace(channels=2)
    config = SimpleNamespace(
        diffusion=True, num_inference_steps=3, ensemble_size=1, average="last", sampler="ddim", noise_channels=0
    )

    def encode_image(self, pixels):
        return functional.avg_pool2d(pixels, 4, ceil_mode=True)

    def decode_map(self, features, noise=None, generator=None, step_noise=None, **dials):
        if noise is None:
            noise = torch.zeros(1, 1, 2, *features.shape[-2:])
        later = sum(step_noise(i, noise.flatten(0, 1)).unflatten(0, (1, -1)) for i in range(2)) if step_noise else 0
        logits = features[:, :2] + (noise + later).mean(1)
        return MapSegmenterOutput(logits=logits, uncertainties={"entropy": features[:, 0].sigmoid()}, num_steps=torch.tensor([2]))


@pytest.mark.parametrize("height, width", [(128, 160), (130, 163), (64, 64)])
def test_windows_have_no_seams_where_the_network_makes_none(height, width):
    model, pixels, dials = PointwiseModel(), torch.randn(1, 3, height, width), Protocol(2, samples=3)
    plan = TestTimeAugmentation(window=(64, 96), stride=(32, 64))
    windows = encode_view(model, pixels, plan)
    whole = encode_view(model, pixels, TestTimeAugmentation())
    tiles = decode_windows(model, windows, dials, torch.Generator().manual_seed(4))
    reference = decode_windows(model, whole, dials, torch.Generator().manual_seed(4))[0].logits
    for seen, tile in zip(windows, tiles):
        tile_height, tile_width = tile.logits.shape[-2:]
        assert torch.equal(tile.logits, reference[..., seen.top : seen.top + tile_height, seen.left : seen.left + tile_width])


def test_shared_noise_makes_windows_agree_where_they_overlap():
    model = tiny_segmenter(map_scale=0.3)
    pixels = view_pixels(picture(160, 96), Noise2MapImageProcessor(do_resize=False), TestTimeAugmentation())
    left = encode_view(model, pixels[..., :96], TestTimeAugmentation())[0]
    right = encode_view(model, pixels[..., 64:], TestTimeAugmentation())[0]
    right.left = 16

    def disagreement(first, second):
        a, b = first.logits.softmax(1)[..., 16:], second.logits.softmax(1)[..., : 24 - 16]
        return float((a - b).abs().mean())

    with torch.no_grad():
        shared = disagreement(*decode_windows(model, [left, right], Protocol(1), torch.Generator().manual_seed(0)))
        apart = [
            decode_windows(model, [one], Protocol(1), torch.Generator().manual_seed(seed))[0]
            for seed, one in enumerate((left, right))
        ]
    assert shared < 0.8 * disagreement(*apart)


@pytest.mark.parametrize("kind", [tiny_segmenter, tiny_depth_model])
@pytest.mark.parametrize("dials", [Protocol(2, 2, "last"), Protocol(2, 1, "steps"), Protocol(2, 1, "last", "ddpm")])
def test_one_window_around_everything_is_the_plain_run(kind, dials):
    model, image = kind(), picture(80, 64)
    processor = Noise2MapImageProcessor(do_resize=False)
    with torch.no_grad():
        output = model(
            pixel_values=processor(images=image, return_tensors="pt")["pixel_values"],
            num_inference_steps=dials.num_inference_steps,
            ensemble_size=dials.ensemble_size,
            average=dials.average,
            sampler=dials.sampler,
            generator=[image_generator(5, "a")],
        )
        planned = AugmentedImage(model, processor, image, TestTimeAugmentation(window=(96, 96))).decode(
            replace(dials, seed=5), "a", (64, 80)
        )
    if kind is tiny_segmenter:
        assert torch.allclose(planned.logits.softmax(1), output.logits.softmax(1), atol=1e-5)
    else:
        assert torch.allclose(planned.predicted_depth, output.predicted_depth, rtol=1e-4)
    assert int(planned.num_steps) == 2


def test_windows_of_all_pixels_lie_where_their_cells_do():
    """With convex upsampling a window's map has four pixels for each side of a cell; alone in the image it is the whole map."""
    model, image = tiny_depth_model(upsampling="convex", objective="laplace"), picture(96, 160)
    processor = Noise2MapImageProcessor(do_resize=False)
    with torch.no_grad():
        seen = AugmentedImage(model, processor, image, TestTimeAugmentation(window=(96, 96), stride=(64, 64)))
        found, _, kinds, _ = decode_view(model, seen.seen[0][1], Protocol(1), torch.Generator().manual_seed(0))
        first, *_, last = decode_windows(model, seen.seen[0][1], Protocol(1), torch.Generator().manual_seed(0))
    height, width = found.shape[-2:]
    assert found.shape == (1, 1, height, width) and kinds["scale"].shape == found.shape
    assert (height, width) in {(96, 160), (160, 96)}
    assert torch.allclose(found[..., :16, :16], first.prediction[..., :16, :16])  # where only one window sees
    assert torch.allclose(found[..., -16:, -16:], last.prediction[..., -16:, -16:])


def test_mirror_images_and_scales_are_averaged_as_probabilities():
    model, image = PointwiseModel(), picture(96, 64)
    processor = Noise2MapImageProcessor(do_resize=False)
    planned = AugmentedImage(model, processor, image, TestTimeAugmentation(scales=SCALES, flip=True))
    assert planned.views[0] == TestTimeAugmentation() and len(planned.views) == 12

    model.decode_map = lambda features, **dials: MapSegmenterOutput(
        logits=features[:, :2], uncertainties={"entropy": features[:, 0].sigmoid()}, num_steps=torch.tensor([2])
    )
    found = planned.decode(Protocol(2), "a", (64, 96)).logits.exp()
    total = torch.zeros(1, 2, 64, 96)
    for scale in SCALES:
        size = (round(64 * scale), round(96 * scale))
        resized = processor(images=resize_image(image, size), return_tensors="pt")["pixel_values"]
        for mirrored in (False, True):
            seen = resized.flip(-1) if mirrored else resized
            logits = functional.interpolate(functional.avg_pool2d(seen, 4, ceil_mode=True)[:, :2], size=size, mode="bilinear")
            chances = functional.interpolate(logits, size=(64, 96), mode="bilinear").softmax(1)
            total += chances.flip(-1) if mirrored else chances
    assert torch.allclose(found, total / 12, atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(1, 64, 96), atol=1e-5)


def test_views_of_an_ensemble_of_two_copies_are_those_of_one():
    image, processor, plan = (
        picture(96, 64),
        Noise2MapImageProcessor(do_resize=False),
        TestTimeAugmentation(own_size=True, flip=True),
    )
    found = []
    with torch.no_grad():
        for model in (tiny_segmenter(seed=2), DecoderEnsemble([tiny_segmenter(seed=2), tiny_segmenter(seed=2)])):
            output = AugmentedImage(model, processor, image, plan).decode(Protocol(2), "a", (16, 24))
            found.append(output.logits.exp())
    # a mean of probabilities is resized as probabilities, one model's logits as logits
    difference, spread = (found[0] - found[1]).abs().mean(), (found[0] - 1 / 5).abs().mean()
    assert difference < 0.1 * spread, (difference, spread)


@pytest.mark.parametrize(
    "options", [Protocol(2), Protocol(2, 2, "steps"), DecodingOptions(sampling="field", num_inference_steps=2, average="steps")]
)
def test_one_view_has_the_probabilities_of_the_plain_run(options):
    """Whatever the output holds: logits, or logarithms of mean probabilities."""
    model, image = tiny_segmenter(seed=2), picture(96, 64)
    processor = Noise2MapImageProcessor(do_resize=False)
    with torch.no_grad():
        seen = AugmentedImage(model, processor, image, TestTimeAugmentation(own_size=True))
        (output,) = decode_windows(model, seen.seen[0][1], options, image_generator(0, "a"))
        found = seen.decode(options, "a", (64, 96)).logits.exp()
        expected = model.make_output(output.logits, (64, 96), output.log_probabilities).logits.softmax(1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("window", [None, (64, 64)])
def test_noise_channels_of_windows_come_from_the_seed(window):
    model, image = tiny_segmenter(noise_channels=2, objective="energy"), picture(128, 96)
    plan = TestTimeAugmentation(own_size=True, window=window)
    found = []
    with torch.no_grad():
        seen = AugmentedImage(model, Noise2MapImageProcessor(do_resize=False), image, plan)
        for state in (0, 1):
            torch.manual_seed(state)
            found.append(seen.decode(Protocol(2), "a", (96, 128)).logits)
        other = seen.decode(replace(Protocol(2), seed=1), "a", (96, 128)).logits
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], other)


def test_depth_of_the_mirror_image_is_mirrored_back():
    model = tiny_depth_model(diffusion=False)
    processor, image = Noise2MapImageProcessor(do_resize=False), picture(96, 64)
    plan, dials = TestTimeAugmentation(own_size=True, flip=True), Protocol(1)
    with torch.no_grad():
        both = AugmentedImage(model, processor, image, plan).decode(dials, "a", (64, 96)).predicted_depth
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        other = AugmentedImage(model, processor, turned, plan).decode(dials, "a", (64, 96)).predicted_depth
        alone = AugmentedImage(model, processor, image, TestTimeAugmentation(own_size=True))
        alone = alone.decode(dials, "a", (64, 96)).predicted_depth
    assert torch.allclose(both, other.flip(-1), rtol=1e-4)  # averaging over mirror images makes a model indifferent to mirroring
    assert not torch.allclose(both, alone, rtol=1e-3)


def test_uncertainty_of_the_mirror_image_is_mirrored_back():
    """A model that is unsure in one corner of what it sees: both upper corners of the picture, and no lower one."""
    model = PointwiseModel()

    def decode_map(features, **options):
        unsure = torch.zeros(1, *features.shape[-2:])
        unsure[:, : unsure.shape[1] // 2, : unsure.shape[2] // 2] = 1
        return MapSegmenterOutput(logits=features[:, :2], uncertainties={"entropy": unsure}, num_steps=torch.tensor([1]))

    model.decode_map = decode_map
    plan = TestTimeAugmentation(own_size=True, flip=True)
    planned = AugmentedImage(model, Noise2MapImageProcessor(do_resize=False), picture(96, 64), plan)
    found = planned.decode(Protocol(1), "a", (64, 96)).uncertainties["entropy"][0]
    assert found[8, 8] == found[8, -8] == 0.5
    assert found[-8, 8] == found[-8, -8] == 0


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"window": (60, 64)}, "multiples of 32"),
        ({"window": (64, 64), "stride": (96, 64)}, "leave gaps"),
        ({"scales": ()}, "scales"),
        ({"scales": (0.0,)}, "scales"),
    ],
)
def test_impossible_plans_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TestTimeAugmentation(**fields)


@pytest.mark.parametrize("plan", [{"flip": True}, {"window": (64, 64)}])
def test_views_of_smooth_draws_are_those_of_their_marginals(plan):
    model, image = tiny_segmenter(seed=2), picture(128, 96)
    views, found = TestTimeAugmentation(own_size=True, **plan), []
    with torch.no_grad():
        seen = AugmentedImage(model, Noise2MapImageProcessor(do_resize=False), image, views)
        for options in (
            DecodingOptions(sampling="field", ensemble_size=4, num_inference_steps=1, average="last", sampler="ddim"),
            DecodingOptions(sampling="field", ensemble_size=1, num_inference_steps=1, average="last", sampler="ddim"),
        ):
            found.append(seen.decode(options, "a", (96, 128)).logits)
    assert torch.equal(*found)
