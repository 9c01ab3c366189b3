import numpy as np
import pytest

from noise2map.report.point_view import first_view, point_growth, view_points

RED, BLUE, BACK = (255, 0, 0), (0, 0, 255), (20, 22, 27)


def colors_of(picture):
    return {tuple(color) for color in picture.reshape(-1, 3).tolist()}


def test_the_nearer_point_hides_the_farther_whatever_the_order():
    points = np.array([[0.0, 0, 2], [0.0, 0, 4]])
    for order in ([0, 1], [1, 0]):
        colors = np.array([RED, BLUE], np.uint8)[order]
        picture = view_points(points[order], colors, yaw_deg=0, pitch_deg=0, focal_px=1000)
        middle = picture[180 - 1 : 180 + 2, 240 - 1 : 240 + 2]
        assert RED in colors_of(middle) and BLUE not in colors_of(middle)


def test_right_stays_right_and_down_stays_down():
    points = np.array([[1.0, 0, 5], [-1.0, 0, 5], [0.0, 1, 5], [0.0, -1, 5]])
    colors = np.array([RED, BLUE, (0, 255, 0), (255, 255, 0)], np.uint8)
    picture = view_points(points, colors, yaw_deg=0, pitch_deg=0, zoom=0.6)

    def place(color):
        return np.argwhere((picture == color).all(-1)).mean(axis=0)  # row, column

    assert place(RED)[1] > 240 > place(BLUE)[1]
    assert place((0, 255, 0))[0] > 180 > place((255, 255, 0))[0]


def test_going_round_to_the_right_moves_what_is_near_to_the_left():
    points = np.array([[0.0, 0, 2], [0.0, 0, 6], [0.0, 0, 4]])
    picture = view_points(points, np.array([RED, BLUE, BLUE], np.uint8), yaw_deg=30, pitch_deg=0, focal_px=1000)
    red = np.argwhere((picture == RED).all(-1))[:, 1].mean()
    blue = np.argwhere((picture == BLUE).all(-1))[:, 1].mean()
    assert red < blue


def test_unknown_points_are_left_out():
    points = np.array([[0.0, 0, 2], [np.nan, 0, 2]])
    picture = view_points(points, np.array([RED, BLUE], np.uint8))
    assert colors_of(picture) == {RED, BACK}
    with pytest.raises(ValueError, match="finite"):
        view_points(points[1:], np.array([BLUE], np.uint8))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(1, 3\)"):
        view_points(points, np.array([BLUE], np.uint8))


@pytest.mark.parametrize("spread", [(1, 1, 1), (6, 0.3, 0.3), (0.2, 5, 0.2), (0.5, 0.5, 30)])
def test_the_first_view_shows_the_whole_cloud_and_no_less(spread):
    points = np.random.default_rng(0).standard_exponential((4000, 3)) * spread
    points -= np.percentile(points, [5, 95], axis=0).mean(axis=0)
    view = first_view(points)
    farthest = []
    for yaw in np.linspace(-view.yaw, view.yaw, 41):
        camera = rotation("x", view.pitch) @ rotation("y", yaw)
        x, y, z = camera @ points.T + np.array([[view.right], [view.down], [view.reach]])
        assert z.min() > 0
        # In widths and heights of the stage from its middle.
        farthest.append((np.abs(x / z * view.focal * view.aspect).max(), np.abs(y / z * view.focal).max()))
    assert 0.42 < np.max(farthest) < 0.5


def rotation(axis, angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]] if axis == "y" else [[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def test_points_of_slanted_surfaces_grow_and_edges_do_not():
    row, column = np.mgrid[0:40, 0:30].astype(float)
    focal = 30.0
    wall = np.stack([(column - 15) / focal * 4, (row - 20) / focal * 4, np.full_like(row, 4.0)], -1)
    np.testing.assert_allclose(point_growth(wall, focal), 1)
    wall[:, 15:] *= 2  # an object in front of it: the points beside its edge stay as they are
    np.testing.assert_allclose(point_growth(wall, focal), 1)
    depth = 1.5 * focal / (row + 6)  # a floor 1.5 m below, up to the horizon
    floor = np.stack([(column - 15) / focal * depth, np.full_like(row, 1.5), depth], -1)
    growth = point_growth(floor, focal)
    # From one row to the next the floor goes back by depth² / (focal 1.5), its pixel is depth / focal.
    np.testing.assert_allclose(growth[1:], np.clip(depth / 1.5, 1, 5)[1:], rtol=0.2)
    floor[5:9, 7] = np.nan
    assert np.isfinite(point_growth(floor, focal)).all()


def test_an_image_of_one_row_has_points_too():
    assert point_growth(np.array([[[0.0, 0, 1], [0.1, 0, 1]]]), 10.0).tolist() == [[1, 1]]
