"""Bird's-eye-view map segmentation: the shared denoising body on the features of cameras and LiDAR."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from noise2map.codecs import BinaryLayersCodec, MultiLabelCodec
from noise2map.diffusion.ensemble import Generators
from noise2map.diffusion.fields import draw_layers
from noise2map.diffusion.process import expand_like
from noise2map.models.aggregation import CLASS_UNCERTAINTIES, Aggregator, ProbabilityAggregator, Sigmoid
from noise2map.models.bev.camera import CameraNeck
from noise2map.models.bev.configuration import Noise2MapBevConfig
from noise2map.models.bev.encoder import BevEncoder
from noise2map.models.bev.grid import GridTransform
from noise2map.models.bev.losses import multilabel_focal_loss
from noise2map.models.bev.rig import CameraRig
from noise2map.models.bev.sparse_conv import SparseConv3d
from noise2map.models.checks import check_keywords
from noise2map.models.decoding import DecodingOptions
from noise2map.models.denoising import input_channels
from noise2map.models.distributions.calibration import Calibration
from noise2map.models.distributions.flow import LayerFlow, read_whole_maps
from noise2map.models.distributions.low_rank import LowRankLayers
from noise2map.models.distributions.whole_maps import WHOLE_MAP_OBJECTIVES, WholeMapAggregator, WholeMaps, marginals_of
from noise2map.models.map_decoder import MapDecoder
from noise2map.models.map_model import MapModel
from noise2map.models.segmentation import CERTAIN, MapSegmenterOutput, SegmentationHead

_MIN_VARIANCE = 1e-6  # of the noise in a map that is all but clean

UNKNOWN = 255  # label of a cell that nobody knows: no loss, and absent in the encoded map


@dataclass
class BevSegmenterOutput(MapSegmenterOutput):
    """Maps of non-exclusive layers, ``(B, K, X, Y)``, rows along LiDAR x, columns along y.

    Attributes:
        probabilities: probability of each layer in each cell.
        uncertainty: the configured kind for each layer and cell ``(B, K, X, Y)`` in [0, 1], as are all ``uncertainties``.
    """

    probabilities: Tensor | None = None

    def uncertainties_at(self, *sizes: tuple[int, int], **choice: Any) -> dict[str, Tensor]:
        """The maps as they are: they have a grid of their own and are not resized.

        Raises:
            ValueError: if a size is asked for.
        """
        if sizes:
            raise ValueError(f"got size {sizes[0]}; expected none: maps of the bird's-eye view are not resized")
        return dict(self.uncertainties or {})


class Noise2MapForBevSegmentation(MapModel):
    """DDP for bird's-eye-view maps: layers by denoising encoded layers, from cameras, LiDAR or both.

    Diffusion runs on the grid of the features (128 x 128 cells of 0.8 m in the published model), the decoder's layers and the map
    on another (200 x 200 cells of 0.5 m). Between them the encoded map is resized by nearest neighbour without regard to the
    slightly different ranges, as in the published model: training and sampling do the same.
    """

    config_class = Noise2MapBevConfig
    config: Noise2MapBevConfig
    task = "bev"
    default_uncertainty = "entropy"
    uncertainty_kinds = CLASS_UNCERTAINTIES
    objectives = ("task", "l2", *WHOLE_MAP_OBJECTIVES)
    codec: MultiLabelCodec | BinaryLayersCodec
    encoder: BevEncoder

    def __init__(self, config: Noise2MapBevConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        codec: MultiLabelCodec | BinaryLayersCodec
        if config.map_encoding == "one_hot":
            codec = BinaryLayersCodec(config.num_labels, config.map_scale)
        else:
            codec = MultiLabelCodec(config.num_labels, config.hidden_size, config.map_scale)
        resample = GridTransform(config.grid[:2], config.map_grid)
        decoder = MapDecoder(config, input_channels(config, codec.channels), config.feature_channels, resample)
        super().__init__(config, codec, SegmentationHead(config), BevEncoder(config), decoder)
        self.post_init()

    # ---- encode ------------------------------------------------------------------------------------------------------

    def encode_image(
        self, pixel_values: Tensor | None, rig: CameraRig | None = None, points: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Runs the encoder on the sensors of a batch.

        Args:
            pixel_values: normalised images ``(B, N, 3, H, W)``.
            rig: their cameras.
            points: a point cloud for each sample ``(P_i, F)``: x, y, z in metres, intensity, age in seconds.

        Returns:
            Features ``(B, C, X, Y)``.

        Raises:
            ValueError: if a sensor is missing or its data cannot be used.
        """
        if pixel_values is not None:
            pixel_values = pixel_values.to(self.dtype)
        return self.encoder(pixel_values, rig, points)

    def encode_sensors(
        self,
        pixel_values: Tensor | None = None,
        intrinsics: Tensor | None = None,
        camera_to_lidar: Tensor | None = None,
        image_augmentation: Tensor | None = None,
        lidar_augmentation: Tensor | None = None,
        points: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """`encode_image` for the tensors of a batch as the processor makes it; see `forward` for them.

        Returns:
            Features ``(B, C, X, Y)``.

        Raises:
            ValueError: if a sensor is missing or its data cannot be used.
        """
        rig = _rig_of(intrinsics, camera_to_lidar, image_augmentation, lidar_augmentation)
        return self.encode_image(pixel_values, rig, points)

    def _encode_taught(self, pixel_values: Tensor | None, *geometry_and_points: Any) -> tuple[Tensor, Tensor]:
        """Features and the loss of the cameras' depth; arguments as of `encode_sensors`."""
        *geometry, points = geometry_and_points
        pixels = None if pixel_values is None else pixel_values.to(self.dtype)
        return self.encoder.forward_taught(pixels, _rig_of(*geometry), points)

    def decode_map(self, features: Tensor, *args: Any, **kwargs: Any) -> BevSegmenterOutput:
        """Denoises a map, given features; the arguments are those of `MapModel.decode_map`.

        Raises:
            ValueError: for features of another size, invalid decoding options, or noise of another shape.
        """
        expected = (self.config.feature_channels, *self.config.feature_size)
        if features.ndim != 4 or tuple(features.shape[1:]) != expected:
            raise ValueError(f"features have shape {tuple(features.shape)}; expected (B, C, X, Y) = (B, {str(expected)[1:]}")
        return super().decode_map(features, *args, **kwargs)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        intrinsics: Tensor | None = None,
        camera_to_lidar: Tensor | None = None,
        image_augmentation: Tensor | None = None,
        lidar_augmentation: Tensor | None = None,
        points: Sequence[Tensor] | None = None,
        labels: Tensor | None = None,
        num_inference_steps: int | str | None = None,
        ensemble_size: int | None = None,
        average: str | None = None,
        sampler: str | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        generator: Generators = None,
        output_uncertainty: bool = False,
        output_steps: bool = False,
        sampling: str | None = None,
        output_samples: bool = False,
        features: Tensor | None = None,
        refine: str | None = None,
        refine_share: float | None = None,
        refine_threshold: float | None = None,
        **kwargs: Any,
    ) -> BevSegmenterOutput:
        """Training loss if labels are given, else a sampled map.

        Args:
            pixel_values: normalised images ``(B, N, 3, H, W)``.
            intrinsics: see `CameraRig`, likewise the next three; ``(B, N, 3, 3)`` or ``(B, N, 4, 4)``.
            camera_to_lidar: ``(B, N, 4, 4)``.
            image_augmentation: ``(B, N, 4, 4)``; the identity if not given.
            lidar_augmentation: ``(B, 4, 4)``; the identity if not given.
            points: a point cloud for each sample ``(P_i, F)``; of a model of cameras alone only in training, for its
                ``config.depth_loss_weight``.
            labels: layers ``(B, K, X, Y)``, integers: 0, 1, or 255 where nobody knows.
            num_inference_steps: see `MapModel.decode_map`, likewise the next three.
            ensemble_size: noise samples for each map.
            average: ``"last"`` or ``"steps"``.
            sampler: ``"ddim"``, ``"ddpm"`` or ``"dpmpp_2m"``.
            noise: ``(B, R, C, X, Y)`` for sampling, ``(B, C, X, Y)`` for training; drawn if not given.
            timesteps: training times ``(B,)``; drawn uniformly if not given.
            generator: one, or a list with one for each sample.
            output_uncertainty: require ``uncertainty`` to be defined.
            output_steps: return the list of `Step`.
            sampling: see `MapModel.decode_map`.
            output_samples: also return the R single maps ``(B, R, K, X, Y)``.
            features: what `encode_sensors` gave ``(B, C, X, Y)``, where it is known: no sensor is needed then.
            refine: see `MapModel.decode_map`, likewise the next two.
            refine_share: of ``refine="uncertain"``.
            refine_threshold: in its place.
            **kwargs: keywords that transformers passes to every model; without effect here.

        Returns:
            `BevSegmenterOutput`.

        Raises:
            ValueError: for inputs, labels, noise or decoding options that cannot work.
        """
        check_keywords(self, kwargs)
        dials: dict[str, Any] = {
            "num_inference_steps": num_inference_steps, "ensemble_size": ensemble_size, "average": average, "sampler": sampler,
            "sampling": sampling, "refine": refine, "refine_share": refine_share, "refine_threshold": refine_threshold,
        }  # fmt: skip
        sensors = (pixel_values, intrinsics, camera_to_lidar, image_augmentation, lidar_augmentation, points)
        if labels is not None:
            self.check_labels(labels, next((one for one in (features, pixel_values, points) if one is not None), None))
            return self._train_with(sensors, features, labels, noise, timesteps, generator)
        DecodingOptions(**dials).resolved(self.config)  # before the encoder runs for nothing
        features = self.encode_sensors(*sensors) if features is None else features
        further: dict[str, Any] = {"noise": noise, "output_steps": output_steps, "output_samples": output_samples}
        out = self.decode_map(features, generator=generator, **dials, **further)
        if output_uncertainty:
            self._require_uncertainty(out)
        return out

    def _train_with(self, sensors: tuple[Any, ...], features: Tensor | None, labels: Tensor, *drawn: Any) -> BevSegmenterOutput:
        """The training loss; sensors as of `encode_sensors`, noise, times and generators as of `forward`."""
        depth_loss: Tensor | None = None
        if features is None:
            taught = self.training and self.config.depth_loss_weight > 0
            features, depth_loss = self._encode_taught(*sensors) if taught else (self.encode_sensors(*sensors), None)
        out: BevSegmenterOutput = self._train_on(features, labels, *drawn)
        if depth_loss is not None:
            out.loss = out.loss + self.config.depth_loss_weight * depth_loss
        return out

    # ---- the parts of the task -----------------------------------------------------------------------------------------

    def check_labels(self, labels: Tensor, pixel_values: Any) -> None:
        """See `MapModel.check_labels`."""
        x, y = self.config.map_grid
        expected = (len(pixel_values) if pixel_values is not None else "B", self.config.num_labels, x.count, y.count)
        if tuple(labels.shape) != expected:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {expected}: a mask for each layer")
        if labels.is_floating_point() or not bool(((labels == 0) | (labels == 1) | (labels == UNKNOWN)).all()):
            raise ValueError(
                f"labels are {labels.dtype} up to {labels.max().item()}; expected integers 0, 1 or {UNKNOWN} (unknown)"
            )

    def encode_labels(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """See `MapModel.encode_labels`."""
        present = (labels == 1).float()
        return self.codec.encode(functional.interpolate(present, size=size, mode="nearest").long())

    def prediction_encoder(self) -> Callable[[Tensor], Tensor]:
        """See `MapModel.prediction_encoder`."""

        if self.config.feedback == "mean":
            return lambda prediction: self.expected_signal(self.map_of(prediction))

        def encode(prediction: Tensor) -> Tensor:
            present = (self.map_of(prediction).sigmoid() > self.codec.threshold).float()
            return self.codec.encode(functional.interpolate(present, size=self.config.feature_size, mode="nearest").long())

        return encode

    def expected_signal(self, prediction: Tensor) -> Tensor:
        """See `MapModel.expected_signal`."""
        # Expected row of each layer, in place of the row of its most likely state.
        chance = functional.interpolate(prediction.sigmoid(), size=self.config.feature_size, mode="nearest")
        if isinstance(self.codec, BinaryLayersCodec):
            return self.codec.encode(chance)
        table = self.codec.embedding.weight.detach()
        chance = chance.to(table.dtype)
        mean = table[0] + chance.movedim(1, -1) @ (table[1:] - table[:1]) / self.codec.num_labels
        return ((mean.sigmoid() * 2 - 1) * self.codec.scale).movedim(-1, 1)

    def map_of(self, prediction: Tensor) -> Tensor:
        """See `MapModel.map_of`; logits of the marginals."""
        return marginals_of(prediction, self.config.num_labels, self._whole_maps)

    def _whole_maps(self, prediction: Tensor) -> WholeMaps:
        """The distribution ``(N, K', X, Y)`` that the head gave; of the objectives that have one."""
        return read_whole_maps(prediction, self, LowRankLayers, LayerFlow)

    def prediction_to_average(self, out: BevSegmenterOutput) -> Tensor:
        """See `MapModel.prediction_to_average`; the log-odds of averaged probabilities."""
        return torch.logit(out.probabilities, eps=1e-7) if out.log_probabilities else super().prediction_to_average(out)

    def loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.loss`."""
        if self.config.objective in WHOLE_MAP_OBJECTIVES:
            return self._whole_maps(prediction).loss(labels, UNKNOWN)
        return multilabel_focal_loss(prediction, labels, self.config.focal_gamma, UNKNOWN).sum()

    def evidence(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `MapModel.evidence`: the log-odds ``2 alpha scale x_t / sigma²`` of each layer, brought to the map's grid."""
        strength = 2 * alpha * self.codec.scale / sigma.square().clamp(min=_MIN_VARIANCE)
        odds = (x_t * expand_like(strength, x_t)).clamp(-CERTAIN / 2, CERTAIN / 2)
        x, y = self.config.map_grid
        return odds if odds.shape[-2:] == (x.count, y.count) else functional.interpolate(odds, (x.count, y.count), mode="nearest")

    def cell_uncertainty(self, prediction: Tensor) -> Tensor:
        """See `MapModel.cell_uncertainty`; least confidence of the layer that is decided least."""
        return 2 * torch.sigmoid(-self.map_of(prediction).abs()).amax(1)  # of the less likely state, also where it is tiny

    def draw_samples(
        self, prediction: Tensor, count: int, smoothness: float, generators: Sequence[torch.Generator | None]
    ) -> Tensor:
        """See `MapModel.draw_samples`; logits of plus or minus `CERTAIN`; those of a `WholeMaps`, if that was learnt."""
        if prediction.shape[1] > self.config.num_labels:
            return self._whole_maps(prediction).sample(count, generators)
        drawn = draw_layers(prediction.sigmoid(), count, smoothness, generators)
        return (drawn.float() * 2 - 1) * CERTAIN

    def make_aggregator(self, batch_size: int, ensemble_size: int, average: str) -> Aggregator:
        """See `MapModel.make_aggregator`."""
        if self.config.objective in WHOLE_MAP_OBJECTIVES:
            return WholeMapAggregator(self.map_of, batch_size, ensemble_size, average, Sigmoid())
        return ProbabilityAggregator(Sigmoid(), batch_size, ensemble_size, average)

    def check_calibration(self, value: dict[str, Any] | None) -> None:
        """See `MapModel.check_calibration`; a temperature for each layer."""
        found = Calibration.read(value, self.calibrated_parts)
        if found is not None and isinstance(found.temperature, tuple) and len(found.temperature) != self.config.num_labels:
            count = len(found.temperature)
            expected = f"one for each of {self.config.num_labels} layers"
            raise ValueError(f"calibration.temperature has {count} numbers; expected {expected}")

    def calibrate(
        self, prediction: Tensor, kinds: dict[str, Tensor], calibration: Calibration, log_probabilities: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `MapModel.calibrate`; of averaged probabilities the log-odds are divided by the temperature."""
        link = Sigmoid()
        prediction = self.map_of(prediction)
        odds = calibration.cool(torch.logit(prediction.exp(), eps=1e-7) if log_probabilities else prediction)
        p = odds.sigmoid()
        kinds = kinds | {"entropy": link.entropy(p), "least_confidence": link.doubt(p)}
        return functional.logsigmoid(odds) if log_probabilities else odds, kinds

    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> BevSegmenterOutput:
        """See `MapModel.make_output`; the map has a grid of its own and is not resized."""
        prediction = self.map_of(prediction)
        probabilities = prediction.exp() if log_probabilities else prediction.sigmoid()
        flag = log_probabilities or None
        return BevSegmenterOutput(logits=prediction, probabilities=probabilities, log_probabilities=flag, **fields)

    # ---- initialisation ------------------------------------------------------------------------------------------------

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.BatchNorm1d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, SparseConv3d):
            init.uniform_(module.weight, -module.bound, module.bound)
        elif isinstance(module, CameraNeck):
            for child in module.modules():
                if isinstance(child, nn.Conv2d):
                    init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BevEncoder):
            neck = set() if module.camera is None else set(module.camera.neck.modules()) | set(module.camera.backbone.modules())
            for child in module.modules():
                if isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)) and child not in neck:
                    init.kaiming_uniform_(child.weight, a=math.sqrt(5))  # torch's default


def _rig_of(intrinsics: Tensor | None, camera_to_lidar: Tensor | None, *augmentations: Tensor | None) -> CameraRig | None:
    if camera_to_lidar is None or intrinsics is None:
        return None
    return CameraRig.create(intrinsics, camera_to_lidar, *augmentations)
