"""Places in Freedoom seen all around: six cameras, LiDAR and bird's-eye-view layers, in nuScenes' format.

Making them (:func:`make_surround`) needs the ``render`` and ``bev`` extras, reading them (:class:`FreedoomSurroundDataset`) the
``bev`` extra.
"""

from noise2map.data.freedoom.surround import SURROUND_LAYERS, SURROUND_PALETTE, FreedoomSurroundDataset
from noise2map.rendering.surround.samples import SurroundOptions, make_surround
from noise2map.rendering.surround.subset import cut_surround
from noise2map.rendering.surround.vector_map import map_expansion

__all__ = [
    "SURROUND_LAYERS",
    "SURROUND_PALETTE",
    "FreedoomSurroundDataset",
    "SurroundOptions",
    "cut_surround",
    "make_surround",
    "map_expansion",
]
