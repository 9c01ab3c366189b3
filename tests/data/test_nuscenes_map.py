"""Map layers against the masks that the nuScenes tools drew, and the rasteriser against recorded OpenCV drawings."""

import json

import numpy as np
import pytest
from golden_reference import GOLDEN

from noise2map.data.nuscenes import MAP_LAYERS, MapExpansion, open_map
from noise2map.data.nuscenes.rasterize import draw_polyline, fill_polygon
from noise2map.data.nuscenes.tables import rigid

pytest.importorskip("shapely")
pytest.importorskip("cv2")
CASES = json.loads((GOLDEN / "bev_toy_map_cases.json").read_text())


def masks(name, count):
    packed = np.load(GOLDEN / "bev_toy_map_masks.npz")[name]
    return np.unpackbits(packed)[: count * 40_000].reshape(count, 200, 200)


@pytest.fixture(scope="module")
def toy_map():
    return MapExpansion(GOLDEN / "bev_toy_map.json")


@pytest.mark.parametrize("number", range(4))
def test_layers_are_those_of_the_nuscenes_tools_bit_by_bit(toy_map, number):
    case = CASES["cases"][number]
    drawn = [toy_map.draw(layer, tuple(case["patch_box"]), case["patch_angle_deg"], (200, 200)) for layer in CASES["layers"]]
    np.testing.assert_array_equal(np.stack(drawn), masks(f"case{number}.devkit_mask_c_y_x", 7))


@pytest.mark.parametrize("number", range(2))
def test_labels_around_a_pose_are_the_published_ones(toy_map, number):
    case = CASES["pose_cases"][number]
    car = rigid(case["ego2global_rotation_wxyz"], case["ego2global_translation"]).astype(np.float32)
    lidar = rigid(case["lidar2ego_rotation_wxyz"], case["lidar2ego_translation"]).astype(np.float32)
    matrix = car @ lidar @ np.linalg.inv(np.array(case["lidar_aug_matrix"], np.float32))
    labels = toy_map.labels(matrix)
    expected = masks(f"pose{number}.labels_c_x_y", 6)
    np.testing.assert_array_equal(labels[:5], expected[:5])
    # A divider ends on the border of the patch, where the last bit of a coordinate decides about a pixel.
    assert (labels[5] != expected[5]).sum() <= 200


def test_rows_run_along_lidar_x_and_columns_along_y(toy_map):
    """The labels of a LiDAR moved by 10 m along its y are those before, 20 columns further."""
    matrix = np.eye(4, dtype=np.float32)
    matrix[:2, 3] = 300, 400
    before = toy_map.labels(matrix)
    matrix[1, 3] += 10
    after = toy_map.labels(matrix)
    shared, moved = before[0][:, 20:], after[0][:, :-20]
    assert shared.any() and (shared != moved).mean() < 0.002


def test_rasteriser_draws_as_recorded():
    cases = json.loads((GOLDEN / "bev_raster.json").read_text())
    recorded = np.load(GOLDEN / "bev_raster.npz")["masks"]
    for case, packed in zip(cases, recorded, strict=True):
        mask = np.zeros((64, 64), np.uint8)
        rings = [np.array(ring) for ring in case["rings"]]
        if case["kind"] == "fill":
            fill_polygon(mask, rings)
        else:
            draw_polyline(mask, rings[0])
        np.testing.assert_array_equal(mask, np.unpackbits(packed).reshape(64, 64), err_msg=str(case))


def test_a_hole_erases_what_was_drawn_before_it():
    mask = np.ones((20, 20), np.uint8)
    fill_polygon(mask, [np.array([[5, 5], [10, 5], [10, 10], [5, 10]])], 0)
    assert (mask[5:11, 5:11] == 0).all() and mask.sum() == 400 - 36


def test_missing_map_expansion_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"map expansion.*v1\.3.*download page.*unpack it into .*maps"):
        open_map(tmp_path, "boston-seaport")


def test_impossible_location_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"location is '\.\./x'"):
        open_map(tmp_path, "../x")


def changed(tmp_path, **changes):
    tables = json.loads((GOLDEN / "bev_toy_map.json").read_text())
    for name, value in changes.items():
        if value is None:
            del tables[name]
        else:
            tables[name] = value
    path = tmp_path / "map.json"
    path.write_text(json.dumps(tables))
    return path


def test_old_or_foreign_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"version '1\.2'.*1\.3"):
        MapExpansion(changed(tmp_path, version="1.2"))
    with pytest.raises(ValueError, match="version None"):
        MapExpansion(changed(tmp_path, version=None))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        MapExpansion(tmp_path / "broken.json")


def test_missing_layer_or_node_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no stop_line, walkway"):
        MapExpansion(changed(tmp_path, walkway=None, stop_line=None))
    broken = MapExpansion(changed(tmp_path, walkway=[{"token": "w", "polygon_token": "nowhere"}]))
    with pytest.raises(ValueError, match="walkway refers to 'nowhere'"):
        broken.layer("walkway")
    with pytest.raises(ValueError, match="no layer 'sidewalk'"):
        broken.layer("sidewalk")


def test_a_node_that_lies_nowhere_is_named(tmp_path):
    nodes = json.loads((GOLDEN / "bev_toy_map.json").read_text())["node"]
    nodes[4]["y"] = float("nan")
    with pytest.raises(ValueError, match=f"node '{nodes[4]['token']}' lies at .*nan"):
        MapExpansion(changed(tmp_path, node=nodes))


def test_layers_of_the_task():
    assert list(MAP_LAYERS) == ["drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider"]
    assert MAP_LAYERS["divider"] == ("road_divider", "lane_divider")
