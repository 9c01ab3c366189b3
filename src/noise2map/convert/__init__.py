"""Official checkpoints -> models of this library, with a report of every key."""

from noise2map.convert.ddp import config_from_shapes, convert_ddp_state_dict, load_official_ddp
from noise2map.convert.state_dict import ConversionReport, read_checkpoint

__all__ = ["ConversionReport", "config_from_shapes", "convert_ddp_state_dict", "load_official_ddp", "read_checkpoint"]
