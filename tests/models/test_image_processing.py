"""The image processor: every kind of picture, sizes, maps, post-processing, saving; no torchvision."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_segmenter
from transformers import AutoImageProcessor

from noise2map.models import Noise2MapImageProcessor

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def picture(width=48, height=40, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def plain(**kwargs):
    """A processor that changes no sizes."""
    return Noise2MapImageProcessor(do_resize=False, **kwargs)


def back_to_bytes(pixel_values):
    """Network units ``(3, H, W)`` -> bytes ``(H, W, 3)``."""
    values = np.asarray(pixel_values).transpose(1, 2, 0) * STD + MEAN
    return np.rint(values * 255)


def processed(image):
    return back_to_bytes(plain()(images=image).pixel_values[0])


# ---- pictures --------------------------------------------------------------------------------------------------------------


def test_normalisation_by_hand():
    image = picture()
    values = (np.asarray(image) / 255 - MEAN) / STD
    out = plain()(images=image, return_tensors="pt")
    assert out.pixel_values.shape == (1, 3, 40, 48)
    assert out.pixel_values.dtype == torch.float32
    assert np.allclose(out.pixel_values[0].numpy().transpose(1, 2, 0), values, atol=1e-5)
    assert "labels" not in out
    raw = plain(do_normalize=False, do_rescale=False)(images=image).pixel_values[0]
    assert np.array_equal(raw.transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "YCbCr", "HSV", "RGBX", "P"])
def test_color_modes(mode):
    flat = Image.new("RGB", (40, 36), (204, 102, 51))  # in the standard palette
    assert np.abs(processed(flat.convert(mode)) - np.array([204, 102, 51])).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"])
def test_grey_modes(mode):
    grey = np.zeros((36, 40), dtype=np.uint8)
    grey[:, 20:] = 255
    grey[:18, :10] = 102 if mode != "1" else 0
    if mode in ("L", "LA", "1"):
        image = Image.fromarray(grey).convert(mode)
    elif mode == "F":  # fractions
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:  # 16 bits: scaled, not clipped
        image = Image.fromarray(grey.astype(np.int32) * 257)
        if mode != "I":
            values = (grey.astype(np.uint16) * 257).astype(">u2" if mode.endswith("B") else "<u2")
            image = Image.frombytes(mode, (40, 36), values.tobytes())
    assert image.mode == mode
    assert np.abs(processed(image) - grey[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_parts_are_laid_on_white(mode):
    image = Image.new("RGBA", (40, 36), (0, 0, 0, 255))
    image.paste((10, 10, 10, 0), (0, 0, 20, 36))
    if mode == "P":
        image = Image.new("P", (40, 36), 1)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.paste(0, (0, 0, 20, 36))
        image.info["transparency"] = 0
    elif mode == "PA":
        alpha = image.getchannel("A")
        image = Image.new("PA", (40, 36))
        image.putalpha(alpha)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    values = processed(image)
    assert (values[:, :20] == 255).all()
    assert (values[:, 20:] == 0).all()


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        lambda image: np.asarray(image).transpose(2, 0, 1),
        lambda image: torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()),
        lambda image: np.asarray(image).astype(np.uint16) * 257,
        lambda image: np.dstack([np.asarray(image), np.full((40, 48), 255, np.uint8)]),
    ],
)
def test_arrays(convert):
    assert np.array_equal(processed(convert(picture())), np.asarray(picture()))


def test_grey_arrays():
    grey = np.asarray(picture().convert("L"))
    for array in (grey, grey[..., None], grey[None]):
        assert np.array_equal(processed(array), np.repeat(grey[..., None], 3, axis=2))


def test_batches():
    batch = np.stack([np.asarray(picture(seed=seed)) for seed in range(3)])
    for images in (batch, list(batch), tuple(batch), [Image.fromarray(image) for image in batch]):
        out = plain()(images=images, return_tensors="pt")
        assert out.pixel_values.shape == (3, 3, 40, 48)
        assert np.array_equal(back_to_bytes(out.pixel_values[2]), batch[2])


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ("picture.png", "image is a str; expected a Pillow image or an array"),
        (None, "image is a NoneType"),
        ([], "got no images"),
        (np.zeros((40, 40, 3)), "type float64; expected uint8"),
        (np.zeros((40, 40, 3), dtype=bool), "type bool"),
        (np.zeros((40, 40, 5), dtype=np.uint8), r"shape \(40, 40, 5\); expected \(H, W, 3\)"),
        (np.zeros(40, dtype=np.uint8), r"shape \(40,\)"),
        (Image.new("RGB", (0, 5)), "0x5 pixels; expected at least one"),
        (Image.fromarray(np.full((4, 4), -3, dtype=np.int32)), r"values from -3 to -3; expected 0\.\.65535"),
        (Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "values from nan"),
    ],
)
def test_pictures_that_cannot_be(images, match):
    with pytest.raises(ValueError, match=match):
        Noise2MapImageProcessor()(images=images)


# ---- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "image", "expected"),
    [
        ({"shortest_edge": 64}, (100, 50), (64, 128)),
        ({"shortest_edge": 64}, (50, 100), (128, 64)),
        ({"shortest_edge": 64, "longest_edge": 96}, (100, 50), (48, 96)),
        ({"shortest_edge": 64, "longest_edge": 96}, (50, 50), (64, 64)),
        ({"height": 40, "width": 70}, (100, 50), (40, 80)),  # 70 would squash it
        ({"height": 120, "width": 160}, (300, 600), (240, 120)),
        ({"height": 120, "width": 160}, (2000, 2), (32, 2000)),  # a strip is not enlarged
        ({"shortest_edge": 120}, (2, 500), (960, 32)),  # nor beyond 8 short sides
        ({"shortest_edge": 120}, (4000, 300), (120, 1600)),  # but long images are reduced as others are
        ({"shortest_edge": 64}, (1, 1), (64, 64)),
        ({"shortest_edge": 512, "longest_edge": 2048}, (20000, 100), (32, 2048)),  # never below the encoder's 32
        ({"height": 8, "width": 8}, (100, 50), (32, 32)),
        ({"shortest_edge": 10}, (100, 50), (32, 32)),
        (64, (100, 50), (64, 128)),
    ],
)
def test_output_sizes(size, image, expected):
    width, height = image
    assert Noise2MapImageProcessor(size=size).output_size(height, width) == expected
    if width < 20000:
        processor = Noise2MapImageProcessor()
        assert processor(images=Image.new("RGB", image), size=size).pixel_values[0].shape == (3, *expected)


def test_resizing_is_pillows_bilinear():
    exact = {"size": {"height": 33, "width": 47}, "keep_aspect_ratio": False}
    out = Noise2MapImageProcessor(**exact)(images=picture()).pixel_values[0]
    assert np.array_equal(back_to_bytes(out), np.asarray(picture().resize((47, 33), Image.Resampling.BILINEAR)))


def test_images_of_several_sizes_do_not_make_one_tensor():
    pictures = [picture(48, 40), picture(40, 40)]
    processor = Noise2MapImageProcessor(size={"shortest_edge": 40})
    with pytest.raises(ValueError, match=r"2 different sizes after resizing, such as \[\(40, 40\), \(40, 48\)\]"):
        processor(images=pictures, return_tensors="pt")
    assert [x.shape for x in processor(images=pictures).pixel_values] == [(3, 40, 48), (3, 40, 40)]
    exact = {"size": {"height": 40, "width": 40}, "keep_aspect_ratio": False}
    assert processor(images=pictures, **exact, return_tensors="pt").pixel_values.shape == (2, 3, 40, 40)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"size": {"shortest_edge": 0}}, "size is .*expected positive 'height' and 'width', or 'shortest_edge'"),
        ({"size": {"height": -3, "width": 3}}, "size is"),
        ({"size": {"longest_edge": 64}}, "size is"),
        ({"size": {"shortest_edge": 1.5}}, "size is"),
        ({"size": {"edge": 3}}, "size"),
        ({"image_mean": [0.5]}, "image_mean is .*expected three numbers"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std"),
        ({"image_mean": 0.5}, "image_mean is 0.5 .*expected three numbers"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean is .*expected three numbers"),
        ({"do_center_crop": True}, "do_center_crop is True; Noise2MapImageProcessor neither crops nor pads"),
        ({"pad_size": {"height": 64, "width": 64}}, "pad_size is .*neither crops nor pads"),
        ({"do_resise": False}, "has no .*'do_resise'"),
    ],
)
def test_fields_that_cannot_be(fields, match):
    with pytest.raises(ValueError, match=match):
        Noise2MapImageProcessor(**fields)
    with pytest.raises(ValueError, match=match):
        Noise2MapImageProcessor()(images=picture(), **fields)


# ---- maps ------------------------------------------------------------------------------------------------------------------


def test_class_maps():
    ids = np.random.default_rng(0).integers(0, 9, (40, 48), dtype=np.uint8)
    ids[0, 0] = 255
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.flatten().tolist())
    for target in (ids, Image.fromarray(ids), torch.from_numpy(ids), palette, ids.astype(np.int32)):
        out = plain()(images=picture(), segmentation_maps=target, return_tensors="pt")
        assert out.labels.shape == (1, 40, 48)
        assert out.labels.dtype == torch.int64
        assert np.array_equal(out.labels[0].numpy(), ids)


def test_depth_maps():
    depth_m = np.random.default_rng(0).uniform(0, 20, (40, 48)).astype(np.float32)
    depth_m[:5] = 0
    for target in (depth_m, torch.from_numpy(depth_m), Image.fromarray(depth_m), depth_m.astype(np.float64)):
        out = plain()(images=[picture()], depth_maps=[target], return_tensors="pt")
        assert out.labels.dtype == torch.float32
        assert np.array_equal(out.labels[0].numpy(), depth_m)


@pytest.mark.parametrize("kind", ["segmentation_maps", "depth_maps"])
def test_maps_are_resized_without_mixing(kind):
    values = np.random.default_rng(0).choice([1, 3, 200], (40, 48)).astype(np.uint8 if kind == "segmentation_maps" else np.float32)
    processor = Noise2MapImageProcessor(size={"height": 57, "width": 83}, keep_aspect_ratio=False)
    out = processor(images=picture(), **{kind: values}, return_tensors="pt")
    assert out.labels.shape == (1, 57, 83)
    rows = np.floor((np.arange(57) + 0.5) * 40 / 57).astype(int)  # the pixel under each centre
    columns = np.floor((np.arange(83) + 0.5) * 48 / 83).astype(int)
    assert np.array_equal(out.labels[0].numpy(), values[rows][:, columns])


def test_reduced_labels():
    ids = np.array([[0, 1, 150, 255]] * 40, dtype=np.uint8).repeat(12, 1)
    out = plain(do_reduce_labels=True)(images=picture(), segmentation_maps=ids)
    assert sorted(set(out.labels[0].flatten().tolist())) == [0, 149, 255]
    assert (out.labels[0][:, :12] == 255).all()
    assert (out.labels[0][:, -12:] == 255).all()


def test_pairs_that_do_not_match():
    ids = np.zeros((40, 48), dtype=np.uint8)
    with pytest.raises(ValueError, match="got 2 images and 1 maps; expected one map for each image"):
        plain()(images=[picture(), picture()], segmentation_maps=[ids])
    with pytest.raises(ValueError, match="segmentation map has type float32; expected integers"):
        plain()(images=picture(), segmentation_maps=ids + np.float32(0.9))
    stacked = np.stack([ids, ids + 1])
    assert [x.max() for x in plain()(images=[picture(), picture()], segmentation_maps=stacked).labels] == [0, 1]
    with pytest.raises(ValueError, match=r"map has shape \(48, 40\); expected the image's \(40, 48\)"):
        plain()(images=picture(), segmentation_maps=ids.T)
    with pytest.raises(ValueError, match=r"map has shape \(40, 48, 3\)"):
        plain()(images=picture(), segmentation_maps=picture())
    with pytest.raises(ValueError, match="segmentation_maps and depth_maps; expected the maps of one task"):
        plain()(images=picture(), segmentation_maps=ids, depth_maps=ids.astype(np.float32))


# ---- post-processing -------------------------------------------------------------------------------------------------------


def test_class_maps_at_the_size_of_the_images():
    logits = torch.randn(2, 4, 10, 12, generator=torch.Generator().manual_seed(0))
    processor, outputs = Noise2MapImageProcessor(), SimpleNamespace(logits=logits)
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(20, 30), (7, 5)])
    assert [m.shape for m in maps] == [(20, 30), (7, 5)]
    expected = torch.nn.functional.interpolate(logits[:1], size=(20, 30), mode="bilinear").argmax(1)[0]
    assert torch.equal(maps[0], expected)
    assert maps[0].dtype == torch.int64
    assert torch.equal(torch.stack(processor.post_process_semantic_segmentation(outputs)), logits.argmax(1))
    as_tensor = processor.post_process_semantic_segmentation(outputs, target_sizes=torch.tensor([[20, 30], [7, 5]]))
    assert torch.equal(as_tensor[1], maps[1])


def test_depth_maps_at_the_size_of_the_images():
    depth_m = torch.rand(2, 10, 12) + 1
    processor, outputs = Noise2MapImageProcessor(), SimpleNamespace(predicted_depth=depth_m)
    maps = processor.post_process_depth_estimation(outputs, target_sizes=[(20, 30), (10, 12)])
    assert [m["predicted_depth"].shape for m in maps] == [(20, 30), (10, 12)]
    assert torch.allclose(maps[1]["predicted_depth"], depth_m[1])
    assert 1 <= float(maps[0]["predicted_depth"].min()) <= float(maps[0]["predicted_depth"].max()) <= 2


def test_uncertainty_at_the_size_of_the_images():
    processor = Noise2MapImageProcessor()
    maps = processor.post_process_uncertainty(SimpleNamespace(uncertainty=torch.rand(2, 10, 12)), target_sizes=[(20, 30)] * 2)
    assert [m.shape for m in maps] == [(20, 30)] * 2
    assert all(0 <= float(m.min()) <= float(m.max()) <= 1 for m in maps)
    with pytest.raises(ValueError, match="holds no uncertainty"):
        processor.post_process_uncertainty(SimpleNamespace(uncertainty=None))
    with torch.no_grad():
        out = tiny_segmenter()(pixel_values=torch.zeros(2, 3, 32, 32), num_inference_steps=2)
    for sizes, message in (
        ((50, 70), "expected a height and a width"),
        ([(0, 7), (3, 3)], "expected positive"),
        ([(3, 3)], "got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.post_process_uncertainty(out, sizes)


def test_a_target_size_for_each_map():
    with pytest.raises(ValueError, match="got 1 target sizes; expected one for each of the 2 maps"):
        Noise2MapImageProcessor().post_process_semantic_segmentation(
            SimpleNamespace(logits=torch.zeros(2, 3, 4, 4)), target_sizes=[(8, 8)]
        )
    for sizes, match in (((8, 8), "a height and a width for each map"), ([(0, 8), (8, 8)], "expected positive heights")):
        with pytest.raises(ValueError, match=match):
            Noise2MapImageProcessor().post_process_depth_estimation(
                SimpleNamespace(predicted_depth=torch.zeros(2, 4, 4)), target_sizes=sizes
            )


def test_logarithms_of_averaged_probabilities_are_resized_as_probabilities():
    p = torch.rand(2, 4, 10, 12, generator=torch.Generator().manual_seed(0)).pow(6) + 1e-6
    p = p / p.sum(1, keepdim=True)
    output = SimpleNamespace(logits=p.log(), log_probabilities=True)
    found = Noise2MapImageProcessor().post_process_semantic_segmentation(output, target_sizes=[(40, 48)] * 2)
    large = torch.nn.functional.interpolate(p, size=(40, 48), mode="bilinear")
    assert torch.equal(torch.stack(found), large.argmax(1))
    as_logits = torch.nn.functional.interpolate(p.log(), size=(40, 48), mode="bilinear")
    assert not torch.equal(large.argmax(1), as_logits.argmax(1))


# ---- saving ----------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_processor_is_the_same(tmp_path):
    processor = Noise2MapImageProcessor(
        size={"height": 48, "width": 64}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], do_reduce_labels=True
    )
    processor.save_pretrained(tmp_path)
    for loaded in (Noise2MapImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is Noise2MapImageProcessor
        assert loaded.to_dict() == processor.to_dict()
        ids = np.asarray(picture().convert("L"))
        ours, theirs = (p(images=picture(), segmentation_maps=ids, return_tensors="pt") for p in (processor, loaded))
        assert torch.equal(ours.pixel_values, theirs.pixel_values)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.slow
def test_works_without_torchvision():
    """In a process where torchvision cannot be imported, the processor prepares an image."""
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from PIL import Image\n"
        "from noise2map import Noise2MapImageProcessor\n"
        "out = Noise2MapImageProcessor()(images=Image.new('RGB', (40, 40)), return_tensors='pt')\n"
        "print(tuple(out.pixel_values.shape))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(1, 3, 512, 512)"
