import matplotlib
import numpy as np
import pytest

from noise2map.data.freedoom.catalog import class_names
from noise2map.data.freedoom.catalog import class_palette as freedoom_palette
from noise2map.report.palettes import (
    IGNORE_COLOR,
    INVALID_COLOR,
    class_palette,
    colorize,
    colorize_depth,
    colorize_labels,
    colorize_normals,
    depth_range,
    generic_palette,
    legend_entries,
)


def lab(colors):
    """CIE L*a*b* of sRGB bytes, D65 (independent of the palettes' own spaces)."""
    srgb = np.asarray(colors, float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def smallest_distance(colors):
    points = lab(colors)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return distances[~np.eye(len(points), dtype=bool)].min()


@pytest.mark.parametrize("classes", [8, 10])
def test_freedoom_classes_have_the_colors_of_the_data_set_and_are_told_apart(classes):
    palette = class_palette(class_names(classes))
    assert (palette == freedoom_palette(classes)).all()
    assert smallest_distance(palette) > 20  # 2.3 is just noticeable


def test_colors_of_a_checkpoint_come_first():
    found = class_palette({0: "floor", 1: "wall"}, ["#ff8000", "#000102"])
    assert found.dtype == np.uint8 and found.tolist() == [[255, 128, 0], [0, 1, 2]]
    with pytest.raises(ValueError, match="fromhex"):
        class_palette({0: "floor"}, ["#gg0000"])


def test_generic_palette_is_distinct_and_grows_by_appending():
    assert len(np.unique(generic_palette(150), axis=0)) == 150
    assert (generic_palette(150)[:19] == generic_palette(19)).all()
    assert smallest_distance(generic_palette(12)) > 15
    with pytest.raises(ValueError, match="0"):
        generic_palette(0)


def test_unknown_names_get_the_generic_palette_and_gaps_are_refused():
    names = {0: "wall", 1: "boat", 2: "lamp", 3: "tree"}
    assert (class_palette(names) == generic_palette(4)).all()
    with pytest.raises(ValueError, match="without gaps"):
        class_palette({0: "a", 2: "b"})


def test_labels_take_their_color_and_ids_outside_are_ignored():
    palette = generic_palette(3)
    colors = colorize_labels(np.array([[0, 2], [255, 3]]), palette)
    assert (colors[0, 0] == palette[0]).all() and (colors[0, 1] == palette[2]).all()
    assert (colors[1] == IGNORE_COLOR).all()


def test_values_follow_matplotlib_and_nan_is_grey():
    values = np.array([[0.0, 0.25, 1.0, 9.0, np.nan]])
    expected = matplotlib.colormaps["magma"](np.array([0.0, 0.25, 1.0, 1.0]), bytes=True)[:, :3]
    colors = colorize(values, 0.0, 1.0, "magma")
    assert np.abs(colors[0, :4].astype(int) - expected).max() <= 1
    assert (colors[0, 4] == INVALID_COLOR).all()
    with pytest.raises(ValueError, match="increasing"):
        colorize(values, 1.0, 1.0)


def test_near_is_lighter_and_warmer_and_the_scale_is_logarithmic():
    depth = np.geomspace(1, 16, 9)[None]
    colors = colorize_depth(depth, 1, 16)[0]
    lightness = lab(colors)[:, 0]
    assert (np.diff(lightness) < 0).all()
    steps = np.linalg.norm(np.diff(lab(colors), axis=0), axis=1)
    assert steps.max() / steps.min() < 3  # equal ratios of depth are about equal steps for the eye
    assert int(colors[0, 0]) - int(colors[0, 2]) > 100 > int(colors[-1, 0]) - int(colors[-1, 2])
    assert (colorize_depth(np.zeros((1, 1)), 1, 16) == INVALID_COLOR).all()


def test_depth_range_covers_the_depths_and_survives_none():
    depth = np.geomspace(0.8, 30, 1000)
    near, far = depth_range(np.r_[depth, 0, np.inf])
    assert near <= np.percentile(depth, 1) and far == pytest.approx(np.percentile(depth, 99))
    assert depth_range(np.zeros((4, 4))) == (1.0, 10.0)
    near, far = depth_range(np.full((2, 2), 3.0))
    assert near <= 3.0 < far


def test_a_wall_in_front_is_blue_and_a_floor_green():
    wall, floor, unknown = colorize_normals(np.array([[[0, 0, -1], [0, -1, 0], [0, 0, 0]]], float))[0]
    assert wall.tolist() == [128, 128, 255]
    assert floor.tolist() == [128, 255, 128]
    assert tuple(unknown) == INVALID_COLOR


def test_legend_names_what_is_there_most_frequent_first():
    palette = generic_palette(5)
    entries = legend_entries([np.array([[3, 3, 1, 255]])], {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}, palette)
    assert [name for _, name in entries] == ["d", "b", "ignored"]
    assert entries[0][0] == tuple(palette[3])
    many = legend_entries([np.arange(5)[None]], {i: str(i) for i in range(5)}, palette, limit=2)
    assert [name for _, name in many] == ["0", "1", "and 3 more"]
