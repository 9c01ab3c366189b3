"""Official checkpoints -> models of this library and of diffusers, with a report of every key."""

from noise2map.convert.adm import LSUN_256_FLAGS, adm_scheduler, load_adm_unet
from noise2map.convert.checkpoint import ConversionReport, read_checkpoint
from noise2map.convert.ddp import config_from_shapes, convert_ddp_state_dict, load_official_ddp

__all__ = [
    "LSUN_256_FLAGS",
    "ConversionReport",
    "adm_scheduler",
    "config_from_shapes",
    "convert_ddp_state_dict",
    "load_adm_unet",
    "load_official_ddp",
    "read_checkpoint",
]
