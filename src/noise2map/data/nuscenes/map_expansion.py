"""The vector maps of nuScenes (map expansion, version 1.3), and the layers drawn from them around the car.

The masks are those of the nuScenes tools, bit by bit, without the tools: geometry by shapely, pixels by OpenCV
(`noise2map.data.nuscenes.rasterize`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noise2map.data.nuscenes.rasterize import Mask, draw_polyline, fill_polygon

# The six layers of the map task, in the published order, and the map's own layers behind each.
MAP_LAYERS: dict[str, tuple[str, ...]] = {
    "drivable_area": ("drivable_area",),
    "ped_crossing": ("ped_crossing",),
    "walkway": ("walkway",),
    "stop_line": ("stop_line",),
    "carpark_area": ("carpark_area",),
    "divider": ("road_divider", "lane_divider"),
}
_LINE_LAYERS = ("road_divider", "lane_divider")
_SEVERAL_POLYGONS = "drivable_area"  # the one layer whose records hold a list of polygons, valid or not
LOCATIONS = ("singapore-onenorth", "singapore-hollandvillage", "singapore-queenstown", "boston-seaport")


class MapExpansion:
    """The vector map of one location.

    Args:
        path: ``maps/expansion/<location>.json``.

    Raises:
        FileNotFoundError: If there is no such file, with where to get it.
        ValueError: If the file is no map expansion of version 1.3 or later, lacks a layer, or has a node at NaN.
        ImportError: If shapely or OpenCV is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        require_map_packages()
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"there is no map {self.path}: the map expansion is a download of its own, apart from the dataset; get "
                f"'Map expansion pack (v1.3)' from the nuScenes download page and unpack it into {self.path.parent.parent}"
            )
        try:
            tables = json.loads(self.path.read_text())
        except ValueError as error:
            raise ValueError(f"{self.path} is not a JSON file: {error}") from error
        version = tables.get("version") if isinstance(tables, dict) else None
        if version is None or float(version) < 1.3:
            raise ValueError(f"{self.path} has version {version!r}; expected a nuScenes map expansion of version 1.3 or later")
        self._tables = tables
        needed = {"node", "line", "polygon", *(layer for layers in MAP_LAYERS.values() for layer in layers)}
        missing = sorted(needed - set(tables))
        if missing:
            raise ValueError(f"{self.path} has no {', '.join(missing)}; expected all layers of a nuScenes map expansion")
        self._nodes = {node["token"]: (node["x"], node["y"]) for node in tables["node"]}
        broken = [token for token, position in self._nodes.items() if not np.isfinite(position).all()]
        if broken:
            raise ValueError(f"{self.path}: node {broken[0]!r} lies at {self._nodes[broken[0]]}; expected metres")
        self._polygons = {record["token"]: record for record in tables["polygon"]}
        self._lines = {record["token"]: record for record in tables["line"]}
        self._layers: dict[str, tuple[list[Any], Any]] = {}

    def layer(self, name: str) -> tuple[list[Any], Any]:
        """Geometries of a layer in the order of the file, and a search tree of them; built on first use.

        Raises:
            ValueError: If the map has no such layer, or a record points nowhere.
        """
        if name not in self._layers:
            if name not in self._tables:
                raise ValueError(f"{self.path} has no layer {name!r}; expected one of {sorted(self._tables)}")
            from shapely import STRtree

            try:
                geometries = self._line_layer(name) if name in _LINE_LAYERS else self._polygon_layer(name)
            except KeyError as error:
                raise ValueError(f"{self.path}: layer {name} refers to {error}, which is not in the file") from error
            self._layers[name] = (geometries, STRtree(geometries))
        return self._layers[name]

    def _line_layer(self, name: str) -> list[Any]:
        from shapely.geometry import LineString

        lines = [self._points(self._lines[record["line_token"]]["node_tokens"]) for record in self._tables[name]]
        return [LineString(points) for points in lines if len(points) > 1]

    def _polygon_layer(self, name: str) -> list[Any]:
        if name == _SEVERAL_POLYGONS:
            return [self._polygon(token) for record in self._tables[name] for token in record["polygon_tokens"]]
        return [shape for record in self._tables[name] if (shape := self._polygon(record["polygon_token"])).is_valid]

    def _polygon(self, token: str) -> Any:
        from shapely.geometry import Polygon

        record = self._polygons[token]
        holes = [self._points(hole["node_tokens"]) for hole in record["holes"]]
        return Polygon(self._points(record["exterior_node_tokens"]), [hole for hole in holes if hole])

    def _points(self, tokens: list[str]) -> list[tuple[float, float]]:
        return [self._nodes[token] for token in tokens]

    def draw(self, layer: str, patch: tuple[float, float, float, float], angle_deg: float, canvas: tuple[int, int]) -> Mask:
        """One of the map's own layers, drawn in a rectangle of the map.

        Args:
            layer: Its name in the file.
            patch: Centre x, y, height and width of the rectangle, metres.
            angle_deg: How far it is turned, counter-clockwise.
            canvas: Height and width of the result, pixels.

        Returns:
            ``(H, W)`` uint8 of 0 and 1; rows run along the rectangle's y, columns along its x, both increasing.
        """
        from shapely import affinity, intersection, is_empty
        from shapely.geometry import GeometryCollection, box

        x, y, height, width = patch
        window = affinity.rotate(
            box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), angle_deg, origin=(x, y), use_radians=False
        )
        local = box(-width / 2, -height / 2, width / 2, height / 2)
        mask = np.zeros(canvas, np.uint8)
        geometries, tree = self.layer(layer)
        shapes = intersection([geometries[index] for index in sorted(tree.query(window))], window)
        # All shapes at once: the arithmetic of each coordinate is the same as one by one.
        whole = GeometryCollection(list(shapes[~is_empty(shapes)]))
        whole = affinity.rotate(whole, -angle_deg, origin=(x, y), use_radians=False)
        whole = affinity.affine_transform(whole, [1.0, 0.0, 0.0, 1.0, -x, -y])
        shapes = intersection(list(whole.geoms), local)
        whole = affinity.affine_transform(GeometryCollection(list(shapes)), [1.0, 0.0, 0.0, 1.0, width / 2, height / 2])
        whole = affinity.scale(whole, xfact=canvas[1] / width, yfact=canvas[0] / height, origin=(0, 0))
        for shape in whole.geoms:
            if layer in _LINE_LAYERS:
                for line in _parts(shape, "LineString"):
                    draw_polyline(mask, np.asarray(line.coords)[:, :2].astype(np.int64))  # truncated
            else:
                _draw_polygons(mask, _parts(shape, "Polygon"))
        return mask

    def labels(
        self,
        lidar_to_global: NDArray[np.floating],
        size_m: tuple[float, float] = (100.0, 100.0),
        canvas: tuple[int, int] = (200, 200),
    ) -> Mask:
        """The six layers around the LiDAR.

        Args:
            lidar_to_global: ``(4, 4)``, the frame of the map (the LiDAR's, augmented or not) -> global. Of an augmentation only
                rotation and translation count, not its scale, as in the published code.
            size_m: Extent along the LiDAR's x and y, metres.
            canvas: Cells along x and y.

        Returns:
            ``(6, X, Y)`` uint8 of 0 and 1, in the order of `MAP_LAYERS`.
        """
        forward = lidar_to_global[:3, :3] @ np.array([1.0, 0.0, 0.0], lidar_to_global.dtype)
        angle_deg = float(np.arctan2(forward[1], forward[0]) / np.pi * 180)
        patch = (float(lidar_to_global[0, 3]), float(lidar_to_global[1, 3]), size_m[1], size_m[0])
        masks = []
        for sources in MAP_LAYERS.values():
            drawn = [self.draw(source, patch, angle_deg, (canvas[1], canvas[0])) for source in sources]
            masks.append(np.maximum.reduce(drawn).T)  # rows y, columns x -> [x, y]
        return np.stack(masks)


def open_map(root: str | Path, location: str) -> MapExpansion:
    """The vector map of a location under the root of a dataset.

    Raises:
        FileNotFoundError: If the map expansion is not there.
        ValueError: If the location's name could not be a file's.
    """
    if not location or Path(location).name != location:
        raise ValueError(f"location is {location!r}; expected a map's name such as {LOCATIONS[0]}")
    return MapExpansion(Path(root) / "maps" / "expansion" / f"{location}.json")


def require_map_packages() -> None:
    """Refuses to go on without shapely and OpenCV.

    Raises:
        ImportError: With how to install it.
    """
    try:
        import cv2  # noqa: F401
        import shapely  # noqa: F401
    except ImportError as error:
        raise ImportError('nuScenes maps need shapely and OpenCV: pip install "noise2map[bev]"') from error


def _parts(shape: Any, kind: str) -> list[Any]:
    """The parts of one kind; where a shape only touches the window there may be others."""
    if shape.is_empty:
        return []
    if shape.geom_type == kind:
        return [shape]
    return [part for piece in getattr(shape, "geoms", []) for part in _parts(piece, kind)]


def _draw_polygons(mask: Mask, polygons: list[Any]) -> None:
    # All outlines at once, then all holes at once: a hole also erases what lay there before, its outline included.
    if polygons:
        fill_polygon(mask, [_rounded(polygon.exterior) for polygon in polygons], 1)
        holes = [_rounded(ring) for polygon in polygons for ring in polygon.interiors]
        if holes:
            fill_polygon(mask, holes, 0)


def _rounded(ring: Any) -> NDArray[np.int64]:
    return np.asarray(ring.coords)[:, :2].round().astype(np.int64)
