"""The diffusion core: schedules, forward process, samplers and the ensemble axis. Needs torch alone."""

from noise2map.diffusion.ensemble import draw_noise, image_generator
from noise2map.diffusion.process import add_noise, eps_from_x0, to_x0, x0_from_eps
from noise2map.diffusion.sampling import Step, ddim_steps, ddpm_steps, time_pairs
from noise2map.diffusion.schedule import (
    CosineSchedule,
    DiscreteTables,
    LinearSchedule,
    Schedule,
    make_schedule,
    tables_from_betas,
)

__all__ = [
    "CosineSchedule",
    "DiscreteTables",
    "LinearSchedule",
    "Schedule",
    "Step",
    "add_noise",
    "ddim_steps",
    "ddpm_steps",
    "draw_noise",
    "eps_from_x0",
    "image_generator",
    "make_schedule",
    "tables_from_betas",
    "time_pairs",
    "to_x0",
    "x0_from_eps",
]
