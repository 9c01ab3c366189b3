"""Tiles: the plan, one field of noise, what blending keeps, and the bound on memory."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter
from torch import nn

from noise2map.diffusion import draw_noise, image_generator
from noise2map.diffusion.fields import multi_resolution_noise
from noise2map.inference import Predictor
from noise2map.inference.folder import predict_folder
from noise2map.inference.tiling.decoding import Blend, TiledDecoder, TileNoise, map_size, ramp
from noise2map.inference.tiling.plan import GRID, Tiling, cut, needed_bytes, spans
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.decoding import PredictionOptions
from noise2map.runs.memory import parse_bytes
from noise2map.runs.strips import by_strips
from noise2map.tasks import TASKS


def photo(width, height, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (max(height // 16, 1), max(width // 16, 1), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def native():
    return Noise2MapImageProcessor(do_resize=False)


@pytest.mark.parametrize("length", [32, 64, 100, 127, 128, 159, 160, 161, 700, 6000])
@pytest.mark.parametrize(("tile", "overlap"), [(128, 32), (64, 32), (256, 64)])
def test_spans_cover_an_image_on_the_grid_and_overlap(length, tile, overlap):
    found = spans(length, tile, overlap)
    assert found[0][0] == 0 and found[-1][1] == length
    assert all(first % GRID == 0 for first, _ in found)
    assert all(last - first <= max(tile, GRID) + GRID - 1 for first, last in found)
    assert all(a[1] - b[0] >= overlap and a[0] < b[0] for a, b in itertools.pairwise(found))
    fewest = 1 if length < tile + GRID else -(-(length // GRID * GRID - overlap) // (tile - overlap))
    assert len(found) == fewest


def test_weights_of_tiles_add_up_to_one_where_overlaps_are_as_planned():
    total = torch.zeros(40)
    for first, last in [(0, 16), (12, 28), (24, 40)]:  # 4 cells in common
        total[first:last] += ramp(first, last, 40, 4)
    assert torch.allclose(total, torch.ones(40))


def test_noise_of_a_cell_is_that_of_the_whole_image():
    shape = (2, 3, 30, 40)
    generator = image_generator(5, "x")
    start = draw_noise(shape, [generator])[0]
    channels = multi_resolution_noise(3, 2, (30, 40), [generator])[0]
    later = draw_noise(shape, [generator])[0]
    for size in (8, 13):
        noise = TileNoise(image_generator(5, "x"), shape)
        for top, left in [(0, 0), (4, 20), (30 - size, 40 - size)]:
            rows, columns = slice(top, top + size), slice(left, left + size)
            assert torch.equal(noise.start(top, left, (size, size))[0], start[..., rows, columns])
            latent = noise.latent(3, top, left, (size, size))(0)
            assert torch.equal(latent, channels[..., rows, columns])
            step = noise.later(top, left, (size, size))(0, torch.zeros(2, 3, size, size))
            assert torch.equal(step, later[..., rows, columns])


def test_blending_gives_back_what_the_tiles_agree_on():
    """Classes as probabilities, depth as logarithms, normals as directions: tiles cut from one map make that map."""
    generator = torch.Generator().manual_seed(0)
    logits, depth = torch.randn(1, 5, 24, 40, generator=generator), torch.rand(1, 2, 24, 40, generator=generator) + 0.5
    normals = nn.functional.normalize(torch.randn(1, 3, 24, 40, generator=generator), dim=1)
    for name, whole in (("segmentation", logits.log_softmax(1)), ("depth", depth), ("normals", normals)):
        task, blend = TASKS[name], Blend((24, 40), 1, 4, ["entropy"])
        for top, left in [(0, 0), (8, 0), (0, 12), (8, 12), (0, 24), (8, 24)]:
            part = whole[..., top : top + 16, left : left + 16]
            out = type("Out", (), {"uncertainties": {"entropy": part[:, 0].abs()}, "num_steps": torch.tensor([3])})
            blend.add((top, left), task.blendable(part, False), out)
        mean, kinds = blend.mean()
        assert torch.allclose(task.blended(mean), whole, atol=1e-5)
        assert torch.allclose(kinds["entropy"], whole[:, 0].abs(), atol=1e-6) and blend.steps == 3


def test_depth_is_brought_to_the_level_of_the_whole_map():
    task, generator = TASKS["depth"], torch.Generator().manual_seed(0)
    truth = torch.rand(1, 1, 9, 9, generator=generator) * 5 + 1
    mixture = torch.cat([truth, torch.full_like(truth, 0.1), *[torch.full_like(truth, 0.5)] * 2, truth, truth, *[truth] * 2], 1)
    tile = mixture.clone()
    tile[:, [0, 4, 5]] *= 1.7  # its depths, not its weights and scales
    aligned = task.aligned(task.blendable(tile, False), task.blendable(truth, False))
    assert torch.allclose(task.blended(aligned), mixture, rtol=1e-5)


class _Pointwise(nn.Module):
    """An encoder that looks at nothing but the cell: tiles must then give exactly the whole map."""

    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv2d(3, channels, 1)

    def forward(self, pixel_values):
        return self.mix(nn.functional.avg_pool2d(pixel_values, 4))


def pointwise(model):
    torch.manual_seed(1)
    model.encoder = _Pointwise(model.config.hidden_size)
    for layer in model.decoder.layers:
        nn.init.zeros_(layer.attention.offsets.weight)
        nn.init.zeros_(layer.attention.offsets.bias)
        layer.attention.position_term = lambda position, layer=layer: torch.zeros(
            len(position), 3 * layer.attention.num_heads * layer.attention.num_points
        )
    return model.eval()


DRAWS_SAMPLES = {"noise_channels": 2, "objective": "energy"}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({}, {"ensemble_size": 2}),
        ({}, {"sampler": "ddpm"}),
        ({}, {"average": "steps"}),
        (DRAWS_SAMPLES, {"ensemble_size": 3}),
        (DRAWS_SAMPLES, {"sampler": "ddpm", "sampling": "diffusion"}),
    ],
)
def test_tiles_of_a_model_that_sees_one_cell_are_the_whole_map(fields, options):
    """What is left between tiles and whole is noise, position and blending: the noise of every step is shared, ids decide it."""
    model = pointwise(tiny_segmenter(**fields))
    image = photo(200, 140)
    choices = {"num_inference_steps": 2, "size": "native", **options}
    whole = Predictor(model, native())(image, ids=["a"], every_uncertainty=True, **choices)[0]
    tiled = Predictor(model, native(), tile=96)(image, ids=["a"], every_uncertainty=True, **choices)[0]
    assert whole.tiles is None and tiled.tiles.count == 6
    assert np.mean(whole.map != tiled.map) < 0.002
    for kind, values in whole.uncertainties.items():
        assert np.abs(values - tiled.uncertainties[kind]).mean() < 2e-3, kind


def test_depth_in_tiles_keeps_to_the_range_and_without_alignment_is_the_whole_map():
    predictor, image = Predictor(pointwise(tiny_depth_model()), native(), tile=128), photo(300, 200)
    tiled = predictor(image, size="native", num_inference_steps=1)[0]
    assert tiled.map.shape == (200, 300) and tiled.processed_size == (300, 200)
    assert tiled.map.min() > 0.499 and np.isfinite(tiled.map).all()
    options = PredictionOptions(num_inference_steps=2, size="native").resolved(predictor.model.config)
    with torch.inference_mode():
        plain = TiledDecoder(predictor.model, native(), TASKS["depth"], options, align=False).decode(
            image, "0", cut((300, 200), 128)
        )
    predictor.tiling = None
    whole = predictor(image, options=options)[0]
    found = TASKS["depth"].arrays(plain, native(), [(200, 300)])[0]
    assert np.quantile(np.abs(np.log(whole.map / found)), 0.8) < 1e-3  # a 3x3 head sees the edges of tiles


def test_an_image_that_fits_is_processed_whole():
    model, image = tiny_segmenter(), photo(90, 70)
    free = Predictor(model, native())(image, size="native")[0]
    bound = Predictor(model, native(), memory="64GiB", tile=None)(image, size="native")[0]
    assert bound.tiles is None and np.array_equal(free.map, bound.map) and np.array_equal(free.uncertainty, bound.uncertainty)


def test_the_same_seed_gives_the_same_map_and_another_seed_another():
    predictor = Predictor(tiny_segmenter(), native(), tile=64)
    image, options = photo(150, 100), {"size": "native", "num_inference_steps": 1}
    first, again = (predictor([image, photo(40, 40)], ids=["a", "b"], **options)[0] for _ in range(2))
    other = predictor(image, ids=["a"], seed=1, **options)[0]
    assert np.array_equal(first.uncertainty, again.uncertainty) and not np.array_equal(first.uncertainty, other.uncertainty)


@pytest.mark.parametrize("backbone", ["convnext", "swin"])
@pytest.mark.parametrize("size", [(64, 64), (97, 66), (130, 159)])
def test_size_of_the_features_is_known_before_they_are(backbone, size):
    model = tiny_segmenter(backbone)
    with torch.no_grad():
        features = model.encode_image(torch.zeros(1, 3, size[1], size[0]))
        assert map_size(model, *size) == tuple(features.shape[-2:])


def test_plans_shrink_with_memory_and_refuse_what_cannot_be_kept():
    model = tiny_segmenter()
    sides = []
    for memory in ("32GiB", "3GiB", "2500MiB"):
        plan = Tiling(parse_bytes(memory)).plan(model, (6000, 4000), (6000, 4000), 1)
        sides.append(plan.tile[0])
        assert needed_bytes(model, (6000, 4000), plan, 1) <= Tiling(parse_bytes(memory)).room(model)
    assert sides == sorted(sides, reverse=True) and sides[-1] < sides[0]
    with pytest.raises(ValueError, match=r"6000x4000 pixels in tiles of 128x128 .* the bound is 0.68 GiB"):
        Tiling(parse_bytes("700MiB")).plan(model, (6000, 4000), (6000, 4000), 1)
    with pytest.raises(ValueError, match="the model and its libraries alone take"):
        Predictor(model, native(), memory="100MiB")
    for tile in (0, 33, -64, 32, "64"):
        with pytest.raises(ValueError, match=r"tile is .* multiple of 32"):
            Predictor(model, native(), tile=tile)
    assert cut((100, 80), 128).count == 1


def test_folders_in_tiles_say_so_and_are_gone_on_with(tmp_path):
    predictor = Predictor(tiny_depth_model(), native(), tile=64)
    (tmp_path / "in").mkdir()
    photo(150, 100).save(tmp_path / "in" / "large.png")
    photo(50, 40).save(tmp_path / "in" / "small.png")
    options = PredictionOptions(size="native", num_inference_steps=1, ensemble_size=2)
    done = predict_folder(tmp_path / "in", tmp_path / "out", predictor, options, progress=False)
    lines = {one["id"]: one for one in done.lines}
    assert lines["large.png"]["tiles"] == {"size": [64, 64], "overlap": 32, "grid": [3, 2]} and "tiles" not in lines["small.png"]
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["tile"] == 64
    assert len(predict_folder(tmp_path / "in", tmp_path / "out", predictor, options, progress=False).skipped) == 2
    with pytest.raises(ValueError, match="other settings"):
        predict_folder(tmp_path / "in", tmp_path / "out", Predictor(predictor.model, native()), options, progress=False)


def test_amounts_of_memory():
    assert [parse_bytes(text) for text in ("2GiB", "1.5 gib", "512MB", "3k", 7)] == [2**31, 3 * 2**29, 512 * 10**6, 3000, 7]
    for text in ("", "lots", "-1GiB", "0", "2 GiB per image", "1e9", "2XB"):
        with pytest.raises(ValueError, match="expected an amount such as 2GiB"):
            parse_bytes(text)


def test_strips_give_what_the_whole_gives():
    values = np.random.default_rng(0).random((1500, 1000), np.float32)
    assert np.array_equal(by_strips(lambda part: np.stack([part * 2] * 3, -1), values), np.stack([values * 2] * 3, -1))
