"""Sampling with depth-aware guidance: a diffusers pipeline around any unconditional `UNet2DModel` (DAG)."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from noise2map.diffusion.ensemble import Generator, guidance_generators
from noise2map.guidance.config import CALL_KEYWORDS, GuidanceConfig
from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.depth_prior import DepthPrior, TauRule
from noise2map.guidance.fetching import FromHub
from noise2map.guidance.gradient import GuidedPrediction, guided_prediction, read_depth
from noise2map.guidance.losses import REDUCTIONS
from noise2map.guidance.outputs import DepthGuidedPipelineOutput, SamplingRun, StepCallback
from noise2map.guidance.placebos import check_pairs
from noise2map.guidance.scheduler_step import CONVENTIONS, GuidedStep, check_sampling, check_scheduler, guided_step, set_timesteps

_OUTPUT_TYPES = ("pil", "np", "pt")
# Arguments of a call that `check_call` looks at.
_CHECKED = (
    "batch_size", "num_inference_steps", "eta", "generator", "latents", "class_labels", "output_depth", "output_type",
)  # fmt: skip


class DepthGuidedPipeline(FromHub, DiffusionPipeline):
    """Unconditional sampling whose images are drawn towards plausible geometry.

    ```python
    pipe = DepthGuidedPipeline.from_pipe(DDIMPipeline.from_pretrained(generator), depth_predictor=predictor, depth_prior=prior)
    out = pipe(batch_size=4, consistency_scale=40.0, prior_scale=40.0, output_depth=True)
    ```

    The U-Net, the predictor and the prior stay as they are: no parameter receives a gradient.

    Args:
        unet: image U-Net; with twice as many output channels as inputs, the second half is the learnt variance.
        scheduler: `DDPMScheduler` or `DDIMScheduler`.
        depth_predictor: needed for guidance and for depth output; trained on this U-Net.
        depth_prior: needed for prior guidance; trained on depth of the predictor's range.
        convention: what a scale means where a call does not say, ``"variance"`` or ``"plain"``; saved with the pipeline.
        reduction: of the losses over pixels where a call does not say, ``"sum"`` or ``"mean"``; saved with the pipeline.
    """

    _optional_components = ["depth_predictor", "depth_prior"]
    _callback_tensor_inputs = ["latents", "gradient", "pred_original_sample", "depth_signal"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler | DDIMScheduler,
        depth_predictor: DepthPredictor | None = None,
        depth_prior: DepthPrior | None = None,
        convention: str = "variance",
        reduction: str = "sum",
    ) -> None:
        """Registers the parts.

        Raises:
            ValueError: if they do not belong together, or convention or reduction is unknown.
        """
        super().__init__()
        for name, value, known in (("convention", convention, CONVENTIONS), ("reduction", reduction, REDUCTIONS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, known))}")
        self.register_to_config(convention=convention, reduction=reduction)
        self.register_modules(unet=unet, scheduler=scheduler, depth_predictor=depth_predictor, depth_prior=depth_prior)
        self.check_components()

    def check_components(self) -> None:
        """Refuses parts that do not belong together; also called before each run, as parts may be replaced.

        Raises:
            ValueError: for a scheduler that cannot be guided, a predictor of another U-Net, or a prior of another depth range
                or shape.
        """
        check_scheduler(self.scheduler, self.unet.config.in_channels, self.unet.config.out_channels)
        if self.depth_predictor is not None:
            self.depth_predictor.check_unet(self.unet)
        if self.depth_prior is not None and self.depth_predictor is not None:
            self.depth_prior.check_predictor(self.depth_predictor)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator = None,
        *,
        num_inference_steps: int = 50,
        guidance: GuidanceConfig | None = None,
        consistency_scale: float = 0.0,
        prior_scale: float = 0.0,
        convention: str | None = None,
        reduction: str | None = None,
        strong_blocks: Sequence[int] | None = None,
        weak_blocks: Sequence[int] | None = None,
        guidance_start: int = 0,
        guidance_end: int | None = None,
        guidance_every: int = 1,
        guidance_log_snr: tuple[float, float] | None = None,
        prior_timesteps: TauRule = "uniform",
        on_nonfinite: str = "error",
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        latents: Tensor | None = None,
        class_labels: Tensor | None = None,
        output_depth: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DepthGuidedPipelineOutput | tuple[Any, ...]:
        """Draws images.

        With both scales zero this is diffusers' `DDPMPipeline` or `DDIMPipeline`, bit for bit; but DDIM steps lead along the time
        steps of the run also where their number does not divide that of training. What the prior draws comes from generators of
        its own, derived from the given ones, so that a guided and an unguided run of one seed see the same noise.

        Args:
            batch_size: number of images B.
            generator: one, or a list of B: then an image does not depend on its batch.
            num_inference_steps: number of steps.
            guidance: all about guidance in one object, also losses of one's own; instead of the keywords that follow, down to
                ``on_nonfinite``.
            consistency_scale: weight of depth consistency guidance.
            prior_scale: weight of depth prior guidance.
            convention: ``"variance"`` (classifier guidance: times the step's variance) or ``"plain"`` (added to the mean as it
                is); the scales of the two differ by orders of magnitude. See `noise2map.guidance.scheduler_step`. None for the
                pipeline's own.
            reduction: of the losses over pixels, ``"sum"`` or ``"mean"``; the scales differ by the number of pixels. None for
                the pipeline's own.
            strong_blocks: the predictor's branch to take as strong, by its blocks; None for its own.
            weak_blocks: the branch to take as weak; None for its own.
            guidance_start: first guided step.
            guidance_end: step before which guidance ends; None for all.
            guidance_every: guide every so many steps, from the first.
            guidance_log_snr: range of the log signal-to-noise ratio in which steps are guided; None for all that the predictor
                can read.
            prior_timesteps: how the prior's time steps are drawn, see `noise2map.guidance.depth_prior.draw_tau`.
            on_nonfinite: ``"error"``, or ``"skip"`` to leave an image unguided in a step whose gradient is not finite.
            eta: noise of DDIM steps, 0 to 1.
            use_clipped_model_output: DDIM: derive the noise again from the clipped clean image, as ADM does. None and False
                follow diffusers. Runs that are compared need the same value.
            latents: start noise ``(B, C, H, W)`` instead of the generator's.
            class_labels: of a class-conditional U-Net, ``(B,)``.
            output_depth: also return the depth that the strong branch reads at the last step.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            return_dict: False for a tuple (images, depths).
            callback_on_step_end: called after each step as in other pipelines; ``latents`` it returns replace the step's.
            callback_on_step_end_tensor_inputs: what it is given: ``"latents"``, ``"gradient"`` (None when unguided),
                ``"pred_original_sample"``, ``"depth_signal"`` (what the strong branch reads at this step, ``(B, 1, H, W)``;
                `DepthPredictor.decode_depth` makes depth of it).

        Raises:
            ValueError: for an impossible argument, before any work, or a gradient that is not finite.
        """
        guidance, callback = self._checked(dict(locals()))
        step_options = {"eta": eta, "use_clipped_model_output": use_clipped_model_output, "generator": generator}
        run = self._draw(guidance, callback, batch_size, num_inference_steps, latents, class_labels, output_depth, step_options)
        depths = self._depths(run.depth_signal, output_type) if output_depth else None
        images = self._images(run.sample, output_type)
        self.maybe_free_model_hooks()
        return DepthGuidedPipelineOutput(images, depths, *run.collected(guidance)) if return_dict else (images, depths)

    def _checked(self, call: dict[str, Any]) -> tuple[GuidanceConfig, StepCallback]:
        """Guidance and callback of a call that can be made.

        Args:
            call: all its arguments by name.

        Raises:
            ValueError: as the call.
        """
        guidance = self._guidance({name: call[name] for name in CALL_KEYWORDS}, call["guidance"])
        self.check_call(guidance, **{name: call[name] for name in _CHECKED})
        function, names = call["callback_on_step_end"], call["callback_on_step_end_tensor_inputs"]
        if isinstance(function, (PipelineCallback, MultiPipelineCallbacks)):
            names = function.tensor_inputs
        self._check_callback(names)
        return guidance, StepCallback(function, names)

    def _guidance(self, keywords: dict[str, Any], guidance: GuidanceConfig | None) -> GuidanceConfig:
        """The configuration of a call, from its keywords or as it is given, with the pipeline's convention and reduction."""
        if guidance is None:
            guidance = GuidanceConfig.from_scales(**{CALL_KEYWORDS[name]: value for name, value in keywords.items()})
        else:
            said = [name for name, value in keywords.items() if value != _CALL[name].default]
            if said:
                raise ValueError(f"got guidance and {', '.join(said)}; expected them in the GuidanceConfig alone")
        return guidance.bound(convention=self.config.convention, reduction=self.config.reduction)

    def _draw(
        self,
        guidance: GuidanceConfig,
        callback: StepCallback,
        batch_size: int,
        num_inference_steps: int,
        latents: Tensor | None,
        class_labels: Tensor | None,
        output_depth: bool,
        step_options: dict[str, Any],
    ) -> SamplingRun:
        """All steps, from the start noise on."""
        generator = step_options["generator"]
        # Before the start noise is drawn, so that giving the same noise as `latents` changes nothing.
        drawing = guidance_generators(generator, batch_size, self._execution_device) if guidance.active else []
        run = SamplingRun(self._start(batch_size, generator, latents))
        set_timesteps(self.scheduler, num_inference_steps)
        depth_from = 0 if "depth_signal" in callback.names else num_inference_steps - 1 if output_depth else None
        with self.progress_bar(total=num_inference_steps) as bar:
            for index, prediction, step in self._steps(run.sample, guidance, drawing, class_labels, depth_from, step_options):
                callback.after(self, index, prediction, step)
                run.add(prediction, step)
                bar.update()
        return run

    def _steps(
        self,
        sample: Tensor,
        guidance: GuidanceConfig,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
        depth_from: int | None,
        step_options: dict[str, Any],
    ) -> Iterator[tuple[int, GuidedPrediction, GuidedStep]]:
        """Steps one after the other; the consumer may replace ``step.prev_sample``, from which the next one starts.

        Depth is read in all steps from ``depth_from`` on, and in guided steps.
        """
        labels, count = None if class_labels is None else class_labels.to(sample.device), len(self.scheduler.timesteps)
        log_snr = torch.logit(self.scheduler.alphas_cumprod.double())
        for index, t in enumerate(self.scheduler.timesteps):
            guided = bool(guidance.active) and guidance.guides(index, float(log_snr[int(t)]), count, self.depth_predictor)
            with_depth = depth_from is not None and index >= depth_from
            prediction = self._predict(sample, t, guidance, guided, generators, labels, with_depth)
            step = guided_step(
                self.scheduler,
                prediction.model_output,
                t,
                sample,
                prediction.gradient,
                convention=guidance.convention,
                **step_options,
            )
            yield index, prediction, step
            sample = step.prev_sample

    def check_call(
        self,
        guidance: GuidanceConfig,
        *,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: Generator = None,
        latents: Tensor | None = None,
        class_labels: Tensor | None = None,
        output_depth: bool = False,
        output_type: str = "pil",
    ) -> None:
        """Refuses impossible arguments before any work; the arguments are those of a call.

        Raises:
            ValueError: naming the argument, its value and what was expected.
        """
        self.check_components()
        check_sampling(self.scheduler, batch_size, num_inference_steps, eta, generator)
        if output_type not in _OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; expected one of {', '.join(_OUTPUT_TYPES)}")
        if self.depth_predictor is None and (guidance.active or output_depth):
            what = f"{guidance.active[0].name}_scale" if guidance.active else "output_depth"
            raise ValueError(f"{what} is set, but the pipeline has no depth_predictor; pass one to from_pipe or from_pretrained")
        if guidance.active and guidance.placebo == "neighbor":
            check_pairs(batch_size)
        for loss in guidance.active:
            loss.bound(self.components)
        if self.depth_predictor is not None:
            guidance.branches(self.depth_predictor)
        conditional = self.unet.class_embedding is not None
        if conditional != (class_labels is not None):
            raise ValueError(
                "the U-Net is class-conditional: pass class_labels (B,)"
                if conditional
                else "class_labels is set, but the U-Net is unconditional"
            )
        if class_labels is not None and tuple(class_labels.shape) != (batch_size,):
            raise ValueError(f"class_labels has shape {tuple(class_labels.shape)}; expected ({batch_size},)")
        if latents is not None and tuple(latents.shape) != self._shape(batch_size):
            raise ValueError(f"latents has shape {tuple(latents.shape)}; expected {self._shape(batch_size)}")

    def _check_callback(self, names: Sequence[str]) -> None:
        known = [name for name in self._callback_tensor_inputs if name != "depth_signal" or self.depth_predictor is not None]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs holds {unknown}; expected names of {known}")

    def _shape(self, batch_size: int) -> tuple[int, ...]:
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("the U-Net has no sample_size; expected the size of its images in px")
        return (batch_size, self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))

    def _start(self, batch_size: int, generator: Generator, latents: Tensor | None) -> Tensor:
        device = self._execution_device
        if latents is not None:
            return latents.to(device, self.unet.dtype)
        return randn_tensor(self._shape(batch_size), generator=generator, device=device, dtype=self.unet.dtype)

    def _predict(
        self,
        sample: Tensor,
        t: Tensor,
        guidance: GuidanceConfig,
        guided: bool,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
        with_depth: bool,
    ) -> GuidedPrediction:
        """One forward pass of the U-Net, with what this step needs of guidance and depth."""
        if guided:
            steps = self.scheduler.config.num_train_timesteps
            return guided_prediction(
                self.unet,
                self.depth_predictor,
                self.depth_prior,
                sample,
                int(t),
                guidance,
                generators,
                image_steps=steps,
                class_labels=class_labels,
            )
        if with_depth:
            return read_depth(self.unet, self.depth_predictor, sample, int(t), guidance.strong_blocks, class_labels)
        return GuidedPrediction(self.unet(sample, t, class_labels=class_labels).sample)

    def _depths(self, signal: Tensor, output_type: str) -> np.ndarray | Tensor:
        depths = self.depth_predictor.decode_depth(signal.float())
        return depths if output_type == "pt" else depths.cpu().numpy()

    def _images(self, sample: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array


_CALL = inspect.signature(DepthGuidedPipeline.__call__).parameters
