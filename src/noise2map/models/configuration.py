"""Configuration of the map models: everything a checkpoint needs to know about itself."""

import difflib
import math
import re
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from noise2map.codecs import CODECS
from noise2map.models.distributions.calibration import Calibration
from noise2map.zoo import ShippedNames

# Keys that transformers itself passes through a configuration.
_FOREIGN_KEYS = {
    "num_labels", "torch_dtype", "dtype", "transformers_version", "architectures", "model_type", "name_or_path", "auto_map",
    "attn_implementation", "use_bfloat16", "task_specific_params", "tokenizer_class", "output_attentions", "return_dict",
    "use_cache",  # written by Trainer
}  # fmt: skip

_CHOICES = {
    "map_encoding": tuple(CODECS),
    "noise_schedule": ("cosine", "linear"),
    "decoder_type": ("denoising", "pyramid_pooling", "kernel_update"),
    "time_input": ("log_snr", "time"),
    "average": ("last", "steps"),
    "sampler": ("ddim", "ddpm", "dpmpp_2m"),
    "sampling": ("diffusion", "one_pass", "field"),
    "refine": ("all", "uncertain"),
    "feedback": ("argmax", "mean"),
    "time_grid": ("uniform", "karras"),
    "time_sampling": ("uniform", "logit_normal"),
    "objective": ("task", "l2", "laplace", "laplace_mixture", "angular", "crps", "energy", "low_rank", "flow"),
    "upsampling": ("bilinear", "convex"),
    "loss_average": ("all", "valid"),
    "depth_representation": ("linear", "log"),
    "depth_noising": ("masked", "bilinear"),
    "uncertainty": (None, "entropy", "step_flip", "sample_variance", "mutual_information", "least_confidence", "scale"),
}


def refuse_with_value_error(config_class: type) -> type:
    """Makes a strict configuration refuse a wrong type by `ValueError`, as it does any other impossible value.

    Without it the error is one of huggingface_hub's own, which is no `ValueError`.
    """
    strict_setattr = config_class.__setattr__

    def __setattr__(self: Any, name: str, value: Any) -> None:
        try:
            strict_setattr(self, name, value)
        except StrictDataclassFieldValidationError as error:
            expected = type(self).__dataclass_fields__[name].type
            expected = expected.__name__ if isinstance(expected, type) else str(expected)
            raise ValueError(f"{name} is {value!r}; expected {expected}") from error

    config_class.__setattr__ = __setattr__
    return config_class


@refuse_with_value_error
@strict
class Noise2MapConfig(ShippedNames, PreTrainedConfig):
    r"""Configuration of `Noise2MapForSemanticSegmentation` and `Noise2MapForDepthEstimation`.

    The defaults are the published segmentation model (DDP Swin-T, ADE20K) apart from the number of classes.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any hierarchical backbone of transformers with four feature maps (Swin, ConvNeXt, DINOv3-ConvNeXt, Hiera, ResNet ...).
        hidden_size (`int`, defaults to 256): Channels of the image features and of the map decoder.
        group_norm_groups (`int`, defaults to 32): Groups of the neck's normalisations.
        decoder_type (`str`, defaults to `"denoising"`): The map decoder; or, for comparison at equal encoder and without diffusion
            (segmentation), `"pyramid_pooling"` (UPerNet-like) or `"kernel_update"` (K-Net-like).
        decoder_layers (`int`, defaults to 6): Depth `L` of the map decoder.
        decoder_attention_heads (`int`, defaults to 8): Heads of the deformable attention.
        decoder_n_points (`int`, defaults to 4): Sampling points of each head.
        decoder_ffn_dim (`int`, defaults to 1024): Inner width of the feed-forward blocks.
        time_embed_dim (`int`, defaults to 1024): Width of the time embedding.
        time_embed_frequencies (`int`, defaults to 8): Learnt frequencies of the time embedding.
        time_input (`str`, defaults to `"log_snr"`): What the time embedding sees: `"log_snr"` (segmentation) or `"time"` (depth).
        time_conditioning (`bool`, defaults to `True`): Modulate the decoder's layers by time. The published depth and
            bird's-eye-view code leaves it out by accident; checkpoints of either kind load.
        layer_norm_eps (`float`, defaults to 1e-5): Epsilon of the decoder's layer norms.
        diffusion (`bool`, defaults to `True`): If `False`, the same network is fed an empty map and called once: the baseline
            without diffusion.
        map_encoding (`str`, defaults to `"class_embedding"`): Label encoding of class maps; also `"one_hot"`, `"analog_bits"`.
        map_scale (`float`, defaults to 0.01): Scale of the encoded map, which sets the signal-to-noise ratio: parts of a map that
            are n cells wide are settled in the middle of a run at about ``1 / n``.
        map_projection_gain (`float`, defaults to 1): Factor of the initial weights through which the noisy map enters the decoder.
            With 1, as published, the noise of a wide code is as loud as the image features when training begins.
        noise_schedule (`str`, defaults to `"cosine"`): Or `"linear"`.
        min_inverse_snr (`float`, defaults to 1e-5): Clamp of the cosine schedule near t = 0 (0 in the published depth model).
        num_inference_steps (`int`, defaults to 3): Decoder calls of a run.
        time_difference (`float`, defaults to 1): Asymmetry of the sampling grid.
        ensemble_size (`int`, defaults to 1): Noise samples of a run.
        average (`str`, defaults to `"last"`): `"last"` step's prediction, or the mean over `"steps"`.
        sampler (`str`, defaults to `"ddim"`): Or `"ddpm"` (ancestral) or `"dpmpp_2m"` (second order).
        sampling (`str`, defaults to `"diffusion"`): What a run is where nothing is asked for: `"diffusion"`, `"one_pass"` or
            `"field"`, see `DecodingOptions`.
        refine (`str`, defaults to `"all"`): Tokens that steps after the first compute: all, or the `"uncertain"` ones alone.
        refine_share (`float`, defaults to 0.3): Share of them that `refine="uncertain"` computes.
        refine_threshold (`float`, *optional*): Uncertainty from which on it computes them, in place of the share.
        feedback (`str`, defaults to `"argmax"`): What is fed back between the steps: the code of the most likely class
            (published), or the `"mean"` of the codes, which is the posterior mean that the sampler's mathematics asks for.
        time_grid (`str`, defaults to `"uniform"`): Times of the steps; `"karras"` is even in the noise-to-signal ratio's 7th root.
        churn (`float`, defaults to 0): Share of fresh noise between the steps of `"ddim"`, 0 to 1.
        field_smoothness (`float`, defaults to 2): Width of the smooth noise of `sampling="field"`, in cells.
        field_level (`float`, defaults to 0.85): Noise level, between 0 and 1, from which several steps of it denoise its maps.
        matched_filter (`bool`, defaults to `False`): Logits are the network's answer plus what the noisy map says by itself (Bayes'
            rule for independent pixels), the image features learn from the call at t = 1 alone, and that call is given an empty
            map. Needs fixed codes: `map_encoding="one_hot"`.
        map_pyramid_levels (`int`, defaults to 0): So many means of the noisy map, over squares of 3, 5, 9, 17 ... cells, beside it
            in the decoder's input: large parts of a map can be read in them where noise hides every single cell. With a matched
            filter.
        noise_channels (`int`, defaults to 0): Channels of multi-resolution noise beside the noisy map: each call draws a sample.
            Needs `objective="crps"` (depth) or `"energy"` (classes).
        time_sampling (`str`, defaults to `"uniform"`): Times of training; `"logit_normal"` draws them around `time_mean`.
        time_mean (`float`, defaults to 0.3): Mean of the logit of time.
        time_std (`float`, defaults to 1): Its standard deviation.
        auto_max_steps (`int`, defaults to 10): Most steps of `num_inference_steps="auto"`, and its time grid.
        auto_threshold (`float`, defaults to 0.01): `"auto"` stops when a smaller fraction of pixels changed.
        auto_log_snr (`float`, *optional*): `"auto"` goes by changes only from the step on at which the encoded map has a higher log
            signal-to-noise ratio than this: before, nothing can be read of it. By default from the second step on.
        flip_tolerance (`float`, defaults to 0.05): Depth counts as changed between two steps if by more than this fraction.
        uncertainty (`str`, *optional*): Kind returned as `uncertainty`; by default the entropy (classes) or the relative spread
            of the predictions (depth); the predicted scale where there is one.
        temperature (`float`, defaults to 1): Divides the logits, or multiplies the predicted scale; fitted by calibration, does
            not move the arg max or the median.
        calibration (`dict`, *optional*): What `noise2map calibrate` found, applied to every output, see `Calibration`.
        objective (`str`, defaults to `"task"`): Loss on the output (`"task"`) or on the encoded map (`"l2"`, the ablation). Depth:
            also the likelihood of log depth under a `"laplace"` distribution, whose median and scale the head then predicts, or
            under a `"laplace_mixture"` of two. Normals: also the likelihood of an `"angular"` distribution, whose direction and
            concentration the head then predicts. With noise channels also a proper score of two samples: `"crps"` (depth, beside
            the Laplace likelihood of the call without noise) or `"energy"` (classes). Classes, without diffusion: also the
            likelihood of whole maps under a `"low_rank"` normal distribution of the logits (stochastic segmentation networks), or
            what a light `"flow"` makes of noise around them (flow stochastic segmentation networks); `sampling="field"` then draws
            from it.
        low_rank_factors (`int`, defaults to 10): Rank of the covariance of `"low_rank"`, beside its diagonal.
        flow_steps (`int`, defaults to 20): Calls of the network of `"flow"` from noise to a map.
        flow_channels (`int`, defaults to 32): Width of that network, a multiple of 8.
        flow_context_channels (`int`, defaults to 16): Channels by which the decoder tells it more than where to start.
        gradient_weight (`float`, defaults to 0): Depth: weight of the error of differences of log depth between pixels (MegaDepth,
            MiDaS), added to the objective `"task"`, `"laplace"` or `"crps"`: surfaces become smooth and edges steep.
        upsampling (`str`, defaults to `"bilinear"`): How a map of cells becomes one of pixels. With `"convex"` the model itself
            gives four times as many along each side, every pixel a mean of nine cells with weights from the decoder (RAFT).
        self_aligned (`bool`, defaults to `False`): Train on the model's own predictions (fine-tuning of the last iterations).
        palette (`list[str]`, *optional*): Colors of the classes, `"#rrggbb"`; by default chosen by their names.
        semantic_loss_ignore_index (`int`, defaults to 255): Label of unknown pixels.
        loss_average (`str`, defaults to `"all"`): The cross entropy is averaged over all pixels (published) or the `"valid"` ones.
        use_auxiliary_head (`bool`, defaults to `True`): Auxiliary segmentation head on the image features, in training only.
        auxiliary_loss_weight (`float`, defaults to 0.4): Its weight.
        auxiliary_channels (`int`, defaults to 256): Its width.
        min_depth (`float`, defaults to 1e-3): Nearest depth, metres.
        max_depth (`float`, defaults to 80): Farthest depth, metres.
        depth_representation (`str`, defaults to `"linear"`): Or `"log"`: of the encoded map and of the head.
        depth_noising (`str`, defaults to `"masked"`): Invalid pixels are left out when depth is reduced to 1/4; `"bilinear"` mixes
            them in as 0 m, as the published code does.
        sample_max_depth (`float`, *optional*): Farthest depth of the encoding where it differs from `max_depth`.
    """

    model_type = "noise2map"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="swin",
            init_kwargs={"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        ),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    group_norm_groups: int = 32
    decoder_type: str = "denoising"
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_n_points: int = 4
    decoder_ffn_dim: int = 1024
    time_embed_dim: int = 1024
    time_embed_frequencies: int = 8
    time_input: str = "log_snr"
    time_conditioning: bool = True
    layer_norm_eps: float = 1e-5
    diffusion: bool = True
    map_encoding: str = "class_embedding"
    map_scale: float | int = 0.01
    map_projection_gain: float | int = 1.0
    noise_schedule: str = "cosine"
    min_inverse_snr: float | int = 1e-5
    num_inference_steps: int = 3
    time_difference: float | int = 1.0
    ensemble_size: int = 1
    average: str = "last"
    sampler: str = "ddim"
    sampling: str = "diffusion"
    refine: str = "all"
    refine_share: float | int = 0.3
    refine_threshold: float | int | None = None
    feedback: str = "argmax"
    time_grid: str = "uniform"
    churn: float | int = 0.0
    field_smoothness: float | int = 2.0
    field_level: float | int = 0.85
    matched_filter: bool = False
    map_pyramid_levels: int = 0
    noise_channels: int = 0
    time_sampling: str = "uniform"
    time_mean: float | int = 0.3
    time_std: float | int = 1.0
    auto_max_steps: int = 10
    auto_threshold: float | int = 0.01
    auto_log_snr: float | int | None = None
    flip_tolerance: float | int = 0.05
    uncertainty: str | None = None
    temperature: float | int = 1.0
    calibration: dict | None = None
    objective: str = "task"
    low_rank_factors: int = 10
    flow_steps: int = 20
    flow_channels: int = 32
    flow_context_channels: int = 16
    gradient_weight: float | int = 0.0
    upsampling: str = "bilinear"
    self_aligned: bool = False
    palette: list[str] | None = None
    semantic_loss_ignore_index: int = 255
    loss_average: str = "all"
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float | int = 0.4
    auxiliary_channels: int = 256
    min_depth: float | int = 1e-3
    max_depth: float | int = 80.0
    depth_representation: str = "linear"
    depth_noising: str = "masked"
    sample_max_depth: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills in sub-configurations and checks every field.

        Raises:
            ValueError: for a field that does not exist or a value that cannot work.
        """
        known = set(type(self).__dataclass_fields__) | _FOREIGN_KEYS
        for key in kwargs:
            if key not in known and not key.startswith("_"):
                close = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{type(self).__name__} has no field {key!r}{hint}")
        if self.id2label is None and self.label2id:
            self.id2label = {index: name for name, index in self.label2id.items()}
        _check_classes(kwargs.get("num_labels"), self.id2label)
        if isinstance(self.backbone_config, dict) and self.backbone_config.get("model_type") not in CONFIG_MAPPING:
            name = self.backbone_config.get("model_type")
            raise ValueError(f"backbone_config has model_type {name!r}; expected a backbone of transformers such as 'swin'")
        super().__post_init__(**kwargs)
        if self.label2id is None and self.id2label is not None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers documents it; classes and palette that are given are there together, for they are checked together."""
        given = {name: kwargs.pop(name) for name in ("palette", "id2label", "label2id") if name in kwargs}
        if "id2label" in given:
            given.setdefault("label2id", None)
        return super().from_dict(config_dict | given, **kwargs)

    def check(self) -> None:
        """Refuses values that cannot work, also those that were set after construction.

        Raises:
            ValueError: naming the field, its value and what was expected.
        """
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(repr(c) for c in choices)}")
        positive = (
            "hidden_size", "group_norm_groups", "decoder_layers", "decoder_attention_heads", "decoder_n_points", "decoder_ffn_dim",
            "time_embed_dim", "time_embed_frequencies", "map_scale", "map_projection_gain", "num_inference_steps",
            "ensemble_size", "auto_max_steps", "temperature", "auxiliary_channels", "min_depth", "layer_norm_eps", "flip_tolerance",
            "low_rank_factors", "flow_steps", "flow_channels", "flow_context_channels",
        )  # fmt: skip
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a positive number")
        for name in ("decoder_attention_heads", "group_norm_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {name} {getattr(self, name)}")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size is {self.hidden_size}; the positional encoding needs a multiple of 4")
        for name in ("max_depth", "sample_max_depth"):
            farthest = getattr(self, name)
            if farthest is not None and not self.min_depth < farthest < math.inf:
                raise ValueError(f"{name} is {farthest!r} m; expected more than min_depth, {self.min_depth} m")
        if self.palette is not None and not all(re.fullmatch("#[0-9a-f]{6}", color) for color in self.palette):
            raise ValueError(f"palette is {self.palette!r}; expected colors such as '#8040ff'")
        if self.palette is not None and len(self.palette) != self.num_labels:
            raise ValueError(f"palette has {len(self.palette)} colors; expected one for each of the {self.num_labels} classes")
        if not 0 <= self.auto_threshold < 1:
            raise ValueError(f"auto_threshold is {self.auto_threshold!r}; expected a fraction in [0, 1)")
        for name in (
            "time_difference",
            "min_inverse_snr",
            "auxiliary_loss_weight",
            "noise_channels",
            "field_smoothness",
            "time_std",
            "gradient_weight",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a number of at least 0")
        if not 0 < self.field_level < 1:
            raise ValueError(f"field_level is {self.field_level!r}; expected a noise level between 0 and 1")
        Calibration.read(self.calibration)
        if not 0 < self.refine_share <= 1:
            raise ValueError(f"refine_share is {self.refine_share!r}; expected a share above 0, at most 1")
        if self.refine_threshold is not None and not self.refine_threshold >= 0:
            raise ValueError(f"refine_threshold is {self.refine_threshold!r}; expected an uncertainty of at least 0")
        if not 0 <= self.churn <= 1:
            raise ValueError(f"churn is {self.churn!r}; expected a share from 0 to 1")
        if (self.objective in ("crps", "energy")) != (self.noise_channels > 0):
            raise ValueError(
                f"objective {self.objective!r} and noise_channels {self.noise_channels} do not go together; "
                "expected both or none of a scoring rule ('crps' for depth, 'energy' for classes) and noise channels"
            )
        if self.gradient_weight and self.objective in ("l2", "laplace_mixture"):
            raise ValueError(
                f"gradient_weight is {self.gradient_weight!r}, a loss of the median, through which objective {self.objective!r} is "
                "not trained; expected 0, or the objective 'task', 'laplace' or 'crps'"
            )
        if self.objective in ("low_rank", "flow") and self.diffusion:
            raise ValueError(f"objective {self.objective!r} draws maps in one pass of the decoder; expected diffusion False")
        if self.flow_channels % 8:
            raise ValueError(f"flow_channels is {self.flow_channels!r}; expected a multiple of 8")
        if self.depth_noising == "bilinear" and self.depth_representation == "log":
            raise ValueError("depth_noising 'bilinear' mixes in 0 m, which has no logarithm; expected 'masked' with 'log'")
        if self.decoder_type != "denoising" and (self.diffusion or self.objective != "task"):
            raise ValueError(
                f"decoder_type is {self.decoder_type!r}, which makes its map in one step; expected diffusion=False and objective "
                f"'task', got {self.diffusion} and {self.objective!r}"
            )
        if self.upsampling == "convex" and self.objective == "l2":
            raise ValueError("upsampling 'convex' has no part in the objective 'l2', which compares cells; expected another")
        self._check_noisy_map()

    def _check_noisy_map(self) -> None:
        """Refuses what a decoder cannot be shown of a noisy map, or learn from it.

        Raises:
            ValueError: naming the field, its value and what was expected.
        """
        if not 0 <= self.map_pyramid_levels <= 8:
            raise ValueError(f"map_pyramid_levels is {self.map_pyramid_levels!r}; expected 0 to 8")
        if self.matched_filter and self.map_encoding != "one_hot":
            raise ValueError(f"map_encoding is {self.map_encoding!r}; the matched filter needs fixed codes, 'one_hot'")
        if self.map_pyramid_levels and not self.matched_filter:
            raise ValueError(f"map_pyramid_levels is {self.map_pyramid_levels!r}; expected 0 without matched_filter")
        if (self.matched_filter or self.noise_channels) and (self.self_aligned or not self.diffusion or self.objective == "l2"):
            raise ValueError(
                "matched_filter and noise_channels train with the true map corrupted; expected diffusion=True, self_aligned=False "
                f"and an objective on the output, got {self.diffusion}, {self.self_aligned} and {self.objective!r}"
            )

    def check_uncertainty(self, task: str, known: tuple[str, ...]) -> None:
        """Refuses a kind of uncertainty that is another task's.

        Raises:
            ValueError: naming the kind and those that the task knows.
        """
        if self.uncertainty not in (None, *known):
            kinds = ", ".join(map(repr, known))
            raise ValueError(f"uncertainty is {self.uncertainty!r}; expected None or one of {kinds} for {task}")

    def check_objective(self, task: str, known: tuple[str, ...]) -> None:
        """Refuses an objective, or a part of one, that is another task's.

        Raises:
            ValueError: naming the objective and those that the task knows.
        """
        if self.gradient_weight and "laplace" not in known:
            raise ValueError(f"gradient_weight is {self.gradient_weight!r}; expected 0 for {task}, it compares depths")
        if self.objective not in known:
            raise ValueError(f"objective is {self.objective!r}; expected one of {', '.join(map(repr, known))} for {task}")


def _check_classes(num_labels: Any, id2label: Any) -> None:
    """Refuses what cannot be a number of classes, or names of classes that are not 0..K-1."""
    if num_labels is not None and (isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1):
        raise ValueError(f"num_labels is {num_labels!r}; expected an integer of at least 1")
    if id2label is None:
        return
    names = id2label.keys() if isinstance(id2label, dict) else ()
    if not names or {str(name) for name in names} != {str(index) for index in range(len(names))}:
        raise ValueError(f"id2label is {id2label!r}; expected a name for each class id from 0 on")
