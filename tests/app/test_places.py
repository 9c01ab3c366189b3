"""Bird's-eye view in the app: what a click says is what is painted there."""

import json

import numpy as np
import pytest
from tiny_bev import ROOM_LAYERS, save_room_bev

from noise2map.app.places import PlaceMap
from noise2map.app.service import AppService
from noise2map.inference.bev import BevPrediction
from noise2map.report.bev_panels import layer_palette


def place_map(probabilities, truth, threshold=0.5):
    names = dict(enumerate(ROOM_LAYERS))
    prediction = BevPrediction("a", probabilities, np.full_like(probabilities, 0.25), "entropy", truth)
    return PlaceMap(prediction, names, layer_palette(names), (40.0, 20.0), threshold)


def test_a_click_says_what_is_painted_there():
    probabilities = np.random.default_rng(0).uniform(0, 0.4, (6, 8, 4)).astype(np.float32)
    truth = np.zeros((6, 8, 4), np.uint8)
    probabilities[2, 6, 3], truth[1, 6, 3], truth[:, 0, 0] = 0.9, 1, 255  # a step to the right, in the row farthest ahead
    place = place_map(probabilities, truth)
    report, painted = place.report(6, 0), place.layers()
    assert report.headline == ROOM_LAYERS[2] and painted["map"].shape == (4, 8, 3)
    assert tuple(painted["map"][0, 6]) == report.bars[0][2] and tuple(painted["image"][0, 6]) == tuple(place.palette[1])
    shares = {name: share for name, share, _ in report.bars}
    assert shares == {name: pytest.approx(float(p)) for name, p in zip(ROOM_LAYERS, probabilities[:, 6, 3])}
    facts = dict(report.facts)
    assert facts == {"right, forward": "+12.5 m, +7.5 m", "truth": ROOM_LAYERS[1], "uncertainty (entropy)": "0.250"}
    hidden = place.report(0, 3)
    assert hidden.headline == "nothing" and dict(hidden.facts)["truth"] == "cannot be seen"
    with pytest.raises(ValueError, match="no cell 8, 0 in a map of 8 x 4"):
        place.report(8, 0)


def test_each_layer_is_there_from_its_own_threshold_on():
    probabilities = np.full((6, 8, 4), 0.3, np.float32)
    thresholds = [0.9, 0.9, 0.31, 0.9, 0.29, 0.9]
    place = place_map(probabilities, np.zeros((6, 8, 4), np.uint8), thresholds)
    assert place.report(2, 1).headline == ROOM_LAYERS[4]
    assert (place.layers()["map"] == place.palette[4]).all()


def test_a_shipped_place_is_shown_at_the_models_thresholds(tmp_path):
    pytest.importorskip("shapely")
    pytest.importorskip("cv2")
    save_room_bev(tmp_path / "cameras", ("camera",))
    fitted = [0.3, 0.45, 0.5, 0.55, 0.6, 0.4]
    path = tmp_path / "cameras" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_thresholds": fitted}))
    service = AppService([str(tmp_path / "cameras")], "cpu", shipped=False)
    try:
        for fields, expected in (({}, fitted), ({"threshold": 0.35}, 0.35)):
            job = service.start("places", {"model": "cameras", "place": 1, "steps": 2, **fields})
            while not job.over:
                job.wait(1)
            assert not job.error, job.error
            assert json.loads(service.file(job.result["token"], "settings.json"))["threshold"] == expected
    finally:
        service.close()


def test_a_shipped_place_can_be_clicked(tmp_path):
    pytest.importorskip("shapely")
    pytest.importorskip("cv2")
    save_room_bev(tmp_path / "cameras", ("camera",))
    service = AppService([str(tmp_path / "cameras")], "cpu", shipped=False)
    try:
        job = service.start("places", {"model": "cameras", "place": 1, "steps": 1})
        while not job.over:
            job.wait(1)
        assert job.error is None or not job.error, job.error
        assert set(job.result["layers"]) == {"image", "map", "uncertainty"} and job.result["size"] == [16, 16]
        said = json.loads(service.file(job.result["token"], "settings.json"))
        assert (said["model"], said["steps"], said["threshold"], said["seed"]) == ("cameras", 1, 0.5, 0)
        html = service.pixel(job.result["token"], 3, 5)["html"]
        assert all(name.replace("_", " ") in html for name in ROOM_LAYERS) and "truth" in html
        with pytest.raises(ValueError, match="no cell"):
            service.pixel(job.result["token"], 16, 5)
    finally:
        service.close()
