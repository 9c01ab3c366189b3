"""The diffusion core: schedules, forward process, samplers and the ensemble axis. Needs torch alone."""

from noise2map.diffusion.ensemble import draw_noise, image_generator
from noise2map.diffusion.fields import draw_classes, draw_laplace, draw_layers, multi_resolution_noise, smooth_field
from noise2map.diffusion.process import add_noise, eps_from_x0, to_x0, x0_from_eps
from noise2map.diffusion.sampling import Step, ddim_steps, ddpm_steps, dpmpp_2m_steps, karras_pairs, time_pairs
from noise2map.diffusion.schedule import (
    CosineSchedule,
    DiscreteTables,
    LinearSchedule,
    Schedule,
    make_schedule,
    tables_from_betas,
)
from noise2map.diffusion.scoring_rules import almost_fair_crps, energy_score, map_crps, map_energy_score

__all__ = [
    "CosineSchedule",
    "DiscreteTables",
    "LinearSchedule",
    "Schedule",
    "Step",
    "add_noise",
    "almost_fair_crps",
    "ddim_steps",
    "ddpm_steps",
    "dpmpp_2m_steps",
    "draw_classes",
    "draw_laplace",
    "draw_layers",
    "draw_noise",
    "energy_score",
    "eps_from_x0",
    "image_generator",
    "karras_pairs",
    "make_schedule",
    "map_crps",
    "map_energy_score",
    "multi_resolution_noise",
    "smooth_field",
    "tables_from_betas",
    "time_pairs",
    "to_x0",
    "x0_from_eps",
]
