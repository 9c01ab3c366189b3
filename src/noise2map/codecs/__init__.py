"""Codecs: maps in physical units or class ids <-> signals in ``[-scale, scale]``. Needs torch alone."""

from noise2map.codecs.base import MapCodec
from noise2map.codecs.categorical import AnalogBitsCodec, CategoricalCodec, ClassEmbeddingCodec, FixedCodec, OneHotCodec
from noise2map.codecs.depth import DepthCodec, check_depth
from noise2map.codecs.multilabel import MultiLabelCodec

__all__ = [
    "AnalogBitsCodec",
    "CategoricalCodec",
    "ClassEmbeddingCodec",
    "DepthCodec",
    "FixedCodec",
    "MapCodec",
    "MultiLabelCodec",
    "OneHotCodec",
    "check_depth",
]
