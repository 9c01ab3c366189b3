"""Denoising with a map model: one decoder call, a run of calls, and the training losses."""

from noise2map.models.denoising.denoiser import Denoiser, decoder_input, input_channels
from noise2map.models.denoising.run import denoising_steps, time_grid
from noise2map.models.denoising.training import draw_times, training_loss

__all__ = ["Denoiser", "decoder_input", "denoising_steps", "draw_times", "input_channels", "time_grid", "training_loss"]
