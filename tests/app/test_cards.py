"""What the page shows of a map: colors that say what they mean, numbers that say no more than is known."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_bev import ROOM_LAYERS
from tiny_models import tiny_config, tiny_depth_model

from noise2map.app import cards
from noise2map.app.files import painted_map
from noise2map.app.maps import MapRequest, run_map
from noise2map.app.pixel import PixelReport, report_pixel, share_text
from noise2map.app.places import PlaceMap
from noise2map.inference.bev import BevPrediction
from noise2map.inference.predictor import Predictor
from noise2map.models import Noise2MapForNormalEstimation, Noise2MapImageProcessor
from noise2map.report.bev_panels import layer_palette

IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 72, 3), dtype=np.uint8))
# Maps of normals have x to the right, y up, z towards the viewer.
FACING = {"up": (0, 1, 0), "down": (0, -1, 0), "left": (-1, 0, 0), "right": (1, 0, 0), "towards you": (0, 0, 1)}


def normals_of(**fields):
    torch.manual_seed(0)
    model = Noise2MapForNormalEstimation(tiny_config(map_scale=0.1, objective="angular", **fields)).eval()
    return run_map(Predictor(model, Noise2MapImageProcessor(size={"height": 32, "width": 32})), "tiny", IMAGE, "a", MapRequest())


def depth_of(**fields):
    predictor = Predictor(
        tiny_depth_model(objective="laplace", **fields), Noise2MapImageProcessor(size={"height": 32, "width": 32})
    )
    return run_map(predictor, "tiny", IMAGE, "a", MapRequest())


def image_in(html):
    return np.asarray(Image.open(BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1]))).convert("RGB"))


def test_the_legend_of_normals_has_the_colors_of_the_map():
    normals = normals_of()
    normals.prediction.map = np.array([list(FACING.values())], np.float32)
    painted = painted_map(normals)[0].tolist()
    assert cards.legend(normals) == [[color, f"faces {name}"] for color, name in zip(painted, FACING)]
    ball = image_in(cards.bars(normals)["map"])
    last = len(ball) - 1
    places = {"up": (0, last // 2), "down": (last, last // 2), "left": (last // 2, 0), "right": (last // 2, last)}
    for name, (row, column) in {**places, "towards you": (last // 2, last // 2)}.items():
        color = painted[list(FACING).index(name)]
        assert np.abs(ball[row, column].astype(int) - color).max() < 20, name  # half a pixel from the rim


def test_a_normal_is_told_in_words():
    result = normals_of()
    result.prediction.map = np.full((48, 72, 3), [-0.6, 0.01, 0.8], np.float32)
    assert report_pixel(result, 3, 4).headline == "faces towards you 0.80, left 0.60"
    result.prediction.map = np.zeros((48, 72, 3), np.float32)
    assert report_pixel(result, 3, 4).headline == "no direction"


def test_cones_hold_what_they_say():
    normals = normals_of()
    report = report_pixel(normals, 30, 20)
    height, width = normals.output.spread.shape[-2:]
    k = 1 / float(normals.output.spread[0, 20 * height // 48, 30 * width // 72])
    angle = np.radians(np.linspace(0, 180, 200_001))
    mass = np.cumsum(np.exp(-k * angle) * np.sin(angle))  # the density of directions, around the whole circle at each angle
    mass /= mass[-1]
    for level in (0.5, 0.9):
        cone = report.marks[f"{level:.0%} cone"]
        assert np.interp(np.radians(cone), angle, mass) == pytest.approx(level, abs=1e-3)
        assert dict(report.facts)[f"{level:.0%} cone"] == f"within {cone:.1f}°"
    bars = np.interp(np.radians(report.edges), angle, mass)
    np.testing.assert_allclose(report.series["stated by the model"], np.diff(bars), atol=1e-3)


def between(report, low, high):
    """Shares of the bars that lie wholly within an interval, and of those that lie in it at all."""
    edges, shares = np.array(report.edges), np.array(report.series["stated by the model"])
    wholly = (edges[:-1] >= low) & (edges[1:] <= high)
    return shares[wholly].sum(), shares[(edges[1:] > low) & (edges[:-1] < high)].sum()


@pytest.mark.parametrize("make", [normals_of, depth_of])
def test_bars_of_a_calibrated_model_agree_with_its_intervals(make):
    plain = report_pixel(make(), 30, 20)
    report = report_pixel(make(calibration={"levels": [0.5, 0.9], "radii": [0.2, 1.0]}), 30, 20)
    for level in (0.5, 0.9):
        said = next(value for name, value in report.facts if name in (f"{level:.0%} interval", f"{level:.0%} cone"))
        low, high = [0.0, *(float(one) for one in re.findall(r"[\d.]+", said.rstrip("°")))][-2:]
        least, most = between(report, low, high)
        assert least <= level <= most
        if level == 0.5:  # what the model states without the calibration is something else
            least, most = between(plain, low, high)
            assert not least <= level <= most


def test_shares_are_rounded_to_neither_nothing_nor_all():
    shares = [0.0, 1e-5, 4.9e-4, 1e-3, 0.5, 0.9994, 0.99996, 1.0]
    assert [share_text(one) for one in shares] == [*["< 0.1%"] * 3, "0.1%", "50.0%", "99.9%", *["> 99.9%"] * 2]
    html = cards.pixel_card(PixelReport(1, 2, "wall", bars=[("wall", 0.99999, (1, 2, 3)), ("sky", 1e-5, (4, 5, 6))]))
    assert "&gt; 99.9%" in html and "&lt; 0.1%" in html


def test_a_histogram_is_as_wide_as_its_scale():
    report = PixelReport(1, 2, "x", edges=[0.0, 10.0, 20.0], series={"a": [0.5, 0.5]}, unit="°")
    html = cards.pixel_card(report)
    assert 'preserveAspectRatio="none"' in html and "<span>20°</span>" in html


def test_uncertainty_from_above_has_a_scale_and_hides_what_cannot_be_seen():
    names = dict(enumerate(ROOM_LAYERS))
    unsure = np.full((6, 8, 4), 0.02, np.float32)
    unsure[1, 2:5], unsure[:, 0, 0] = 0.18, 0.9
    truth = np.zeros((6, 8, 4), np.uint8)
    truth[:, 0, 0] = 255
    prediction = BevPrediction("a", np.full((6, 8, 4), 0.1, np.float32), unsure, "bit_entropy", truth)
    place = PlaceMap(prediction, names, layer_palette(names), (40.0, 20.0), 0.5)
    found = cards.place_layers(place)
    bar = found["bars"]["uncertainty"]
    # Up to the least round number above what can be seen.
    assert re.findall(r">([\d.]+)</span>", bar)[-1] == "0.2" and found["uncertainty"] == "uncertainty (bit entropy)"
    painted = image_in(found["layers"]["uncertainty"])
    cannot_be_seen = next(color for color, name in found["legend"] if name == "cannot be seen")
    assert painted[3, 0].tolist() == cannot_be_seen and painted[2, 0].tolist() != cannot_be_seen
    assert int(painted[0, 3].sum()) > int(painted[0, 7].sum())
