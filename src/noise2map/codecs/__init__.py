"""Codecs: maps in physical units or class ids <-> signals in ``[-scale, scale]``. Needs torch alone."""

from noise2map.codecs.base import MapCodec
from noise2map.codecs.categorical import AnalogBitsCodec, CategoricalCodec, ClassEmbeddingCodec, FixedCodec, OneHotCodec
from noise2map.codecs.depth import DepthCodec, check_depth
from noise2map.codecs.multilabel import BinaryLayersCodec, MultiLabelCodec
from noise2map.codecs.normals import NormalsCodec

CODECS: dict[str, type[CategoricalCodec]] = {
    "class_embedding": ClassEmbeddingCodec,
    "one_hot": OneHotCodec,
    "analog_bits": AnalogBitsCodec,
}
"""Encodings of class maps by the name that `Noise2MapConfig.map_encoding` gives them."""

__all__ = [
    "CODECS",
    "AnalogBitsCodec",
    "BinaryLayersCodec",
    "CategoricalCodec",
    "ClassEmbeddingCodec",
    "DepthCodec",
    "FixedCodec",
    "MapCodec",
    "MultiLabelCodec",
    "NormalsCodec",
    "OneHotCodec",
    "check_depth",
]
