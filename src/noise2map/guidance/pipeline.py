"""Sampling with depth-aware guidance: a diffusers pipeline around any unconditional `UNet2DModel` (DAG)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from noise2map.diffusion.ensemble import Generator, guidance_generators
from noise2map.guidance.config import GuidanceLosses, SamplingRun
from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.depth_prior import DepthPrior, TauRule
from noise2map.guidance.gradient import GuidedPrediction, branches, guided_prediction, read_depth
from noise2map.guidance.losses import REDUCTIONS
from noise2map.guidance.scheduler_step import CONVENTIONS, GuidedStep, check_scheduler, guided_step

_OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class DepthGuidedPipelineOutput(BaseOutput):
    """What a run gives.

    Attributes:
        images: PIL images, or an array ``(B, H, W, C)``, or a tensor ``(B, C, H, W)``, in [0, 1].
        depths: depth that the strong branch reads at the last step, an array (a tensor for ``output_type="pt"``) ``(B, H,
            W)``, in metres if the predictor is metric, else in [0, 1]; None unless ``output_depth``.
        losses: loss name -> its value before each step, unscaled, ``(steps, B)`` on the CPU; NaN where a step was not guided.
        skipped: number of steps of each image that were left unguided because the gradient was not finite, ``(B,)``.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    depths: np.ndarray | Tensor | None = None
    losses: dict[str, Tensor] | None = None
    skipped: Tensor | None = None


class DepthGuidedPipeline(DiffusionPipeline):
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
        if self.depth_prior is None or self.depth_predictor is None:
            return
        ours, theirs = self.depth_predictor.depth_range, self.depth_prior.depth_range
        if ours != theirs:
            raise ValueError(
                f"the depth predictor gives {ours}, but the depth prior was trained on {theirs}; expected the same range"
            )
        (height, width), (prior_height, prior_width) = self.depth_predictor.image_size, self.depth_prior.image_size
        if height * prior_width != width * prior_height:
            raise ValueError(
                f"images have {height}x{width} px and the depth prior {prior_height}x{prior_width}: expected the same proportions"
            )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator = None,
        *,
        num_inference_steps: int = 50,
        consistency_scale: float = 0.0,
        prior_scale: float = 0.0,
        convention: str | None = None,
        reduction: str | None = None,
        strong_blocks: Sequence[int] | None = None,
        weak_blocks: Sequence[int] | None = None,
        guidance_start: int = 0,
        guidance_end: int | None = None,
        guidance_every: int = 1,
        guidance_timesteps: tuple[int, int] | None = None,
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

        With both scales zero this is diffusers' `DDPMPipeline` or `DDIMPipeline`, bit for bit. What the prior draws comes from
        generators of its own, derived from the given ones, so that a guided and an unguided run of one seed see the same noise.

        Args:
            batch_size: number of images B.
            generator: one, or a list of B: then an image does not depend on its batch.
            num_inference_steps: number of steps.
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
            guidance_timesteps: half-open range of the U-Net's time steps that are guided; None for the predictor's useful range.
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
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        convention = self.config.convention if convention is None else convention
        reduction = self.config.reduction if reduction is None else reduction
        losses = GuidanceLosses(
            consistency_scale, prior_scale, reduction, strong_blocks, weak_blocks, prior_timesteps, on_nonfinite
        )
        run = SamplingRun(
            batch_size,
            num_inference_steps,
            convention,
            guidance_start,
            guidance_end,
            guidance_every,
            guidance_timesteps,
            eta,
            use_clipped_model_output,
        )
        every_depth = "depth_signal" in callback_on_step_end_tensor_inputs
        self.check_call(run, losses, generator, latents, class_labels, output_depth, output_type)
        known = [name for name in self._callback_tensor_inputs if name != "depth_signal" or self.depth_predictor is not None]
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in known]
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs holds {unknown}; expected names of {known}")
        # Before the start noise is drawn, so that giving the same noise as `latents` changes nothing.
        prior_generators = guidance_generators(generator, batch_size, self._execution_device) if losses.active else []
        sample = self._start(batch_size, generator, latents)
        self.scheduler.set_timesteps(num_inference_steps)
        log: list[tuple[dict[str, Tensor], Tensor | None]] = []
        depth_signal = None
        depth_from = 0 if every_depth else num_inference_steps - 1 if output_depth else None
        with self.progress_bar(total=num_inference_steps) as bar:
            for index, prediction, step in self._steps(sample, run, losses, generator, prior_generators, class_labels, depth_from):
                if callback_on_step_end is not None:
                    tensors = {
                        "latents": step.prev_sample,
                        "gradient": prediction.gradient,
                        "pred_original_sample": step.pred_original_sample,
                        "depth_signal": prediction.depth_signal,
                    }
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    returned = callback_on_step_end(self, index, self.scheduler.timesteps[index], given) or {}
                    step.prev_sample = returned.get("latents", step.prev_sample)
                # Only what is small is kept of each step.
                log.append((prediction.losses, prediction.skipped))
                sample, depth_signal = step.prev_sample, prediction.depth_signal
                bar.update()
        depths = self._depths(depth_signal, output_type) if output_depth else None
        images = self._images(sample, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, depths
        return DepthGuidedPipelineOutput(images, depths, *_collect(log, losses, batch_size))

    def _steps(
        self,
        sample: Tensor,
        run: SamplingRun,
        losses: GuidanceLosses,
        generator: Generator,
        prior_generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
        depth_from: int | None,
    ) -> Iterator[tuple[int, GuidedPrediction, GuidedStep]]:
        """Steps one after the other; the consumer may replace ``step.prev_sample``, from which the next one starts.

        Depth is read in all steps from ``depth_from`` on, and in guided steps.
        """
        labels = None if class_labels is None else class_labels.to(sample.device)
        for index, t in enumerate(self.scheduler.timesteps):
            guided = losses.active and run.guides(index, int(t), self.depth_predictor)
            with_depth = depth_from is not None and index >= depth_from
            prediction = self._predict(sample, t, losses, guided, prior_generators, labels, with_depth)
            step = guided_step(
                self.scheduler,
                prediction.model_output,
                t,
                sample,
                prediction.gradient,
                convention=run.convention,
                eta=run.eta,
                use_clipped_model_output=run.use_clipped_model_output,
                generator=generator,
            )
            yield index, prediction, step
            sample = step.prev_sample

    def check_call(
        self,
        run: SamplingRun,
        losses: GuidanceLosses,
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
        run.check(self.scheduler, generator)
        if output_type not in _OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; expected one of {', '.join(_OUTPUT_TYPES)}")
        if self.depth_predictor is None and (losses.active or output_depth):
            what = "output_depth" if not losses.active else "consistency_scale" if losses.consistency_scale else "prior_scale"
            raise ValueError(f"{what} is set, but the pipeline has no depth_predictor; pass one to from_pipe or from_pretrained")
        if self.depth_prior is None and losses.prior_scale:
            raise ValueError(
                f"prior_scale is {losses.prior_scale}, but the pipeline has no depth_prior; pass one, or prior_scale=0"
            )
        if self.depth_predictor is not None:
            branches(self.depth_predictor, losses)
        conditional = self.unet.class_embedding is not None
        if conditional != (class_labels is not None):
            raise ValueError(
                "the U-Net is class-conditional: pass class_labels (B,)"
                if conditional
                else "class_labels is set, but the U-Net is unconditional"
            )
        if class_labels is not None and tuple(class_labels.shape) != (run.batch_size,):
            raise ValueError(f"class_labels has shape {tuple(class_labels.shape)}; expected ({run.batch_size},)")
        if latents is not None and tuple(latents.shape) != self._shape(run.batch_size):
            raise ValueError(f"latents has shape {tuple(latents.shape)}; expected {self._shape(run.batch_size)}")

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
        losses: GuidanceLosses,
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
                losses,
                generators,
                image_steps=steps,
                class_labels=class_labels,
            )
        if with_depth:
            return read_depth(self.unet, self.depth_predictor, sample, int(t), losses.strong_blocks, class_labels)
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


def _collect(
    log: Sequence[tuple[dict[str, Tensor], Tensor | None]], losses: GuidanceLosses, batch_size: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses of all steps, ``(steps, B)`` by name, and skipped steps of each image."""
    scales = {"consistency": losses.consistency_scale, "prior": losses.prior_scale}
    missing = torch.full((batch_size,), float("nan"))
    values = {
        name: torch.stack([found[name].float().cpu() if name in found else missing for found, _ in log])
        for name, scale in scales.items()
        if scale
    }
    skips = [skipped.long().cpu() for _, skipped in log if skipped is not None]
    return values, sum(skips, torch.zeros(batch_size, dtype=torch.long))
