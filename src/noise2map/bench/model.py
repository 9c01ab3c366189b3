"""Time and memory of a map model, stage by stage, against two yardsticks measured in the same run.

The yardsticks: the same decoder with ``grid_sample`` attention, eager or compiled, whichever is faster, and the floor, which is
the step's matrix products alone (same shapes, same type, the faster of PyTorch's own linear and oneDNN). Everything that is
compared takes turns, one call of each in every round, so that a slow minute of the machine hits all of them; figures are
medians over the rounds.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from noise2map.bench.timing import IDENTITY, BenchOptions, in_own_process, machine_facts, name_of, send_peak, time_calls
from noise2map.diffusion.process import add_noise, eps_from_x0
from noise2map.diffusion.sampling import time_pairs
from noise2map.inference.loading import load_model
from noise2map.models import MapModel, Noise2MapConfig, Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation
from noise2map.models.decoding import MAX_STEPS
from noise2map.models.denoising import Denoiser
from noise2map.models.denoising.run import tokens_in_memory
from noise2map.models.kernels.onednn_linear import available, onednn_linear
from noise2map.models.map_decoder import DeformableAttention, MapDecoder
from noise2map.runs.memory import hand_back_freed_memory
from noise2map.runs.provenance import provenance

logger = logging.getLogger(__name__)

MODES = ("eager", "compiled")
MODEL_IDENTITY = ("model", "mode", *IDENTITY)
MODEL_COLUMNS = {
    "type": "dtype",
    "mode": "mode",
    "stage": "stage",
    "ms": "ms",
    "x floor": "step_over_floor",
    "x torch floor": "step_over_torch_floor",
    "grid_sample ms": "grid_sample_ms",
    "faster by": "grid_sample_over_step",
    "x step": "refined_over_step",
    "x eager": "over_eager",
    "peak MiB": "peak_mb",
    "working MiB": "working_mb",
}

_SWIN_T = {
    "model_type": "swin",
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}

# Published architectures, with weights drawn from the seed: speed does not depend on what they say.
PRESETS: dict[str, tuple[type[MapModel], dict[str, Any]]] = {
    "swin-t-ade20k": (Noise2MapForSemanticSegmentation, {"backbone_config": _SWIN_T, "num_labels": 150}),
    "swin-t-kitti": (Noise2MapForDepthEstimation, {"backbone_config": _SWIN_T, "time_input": "time", "map_scale": 0.1}),
}


@dataclass(frozen=True, kw_only=True)
class ModelBenchOptions(BenchOptions):
    """Options of the model benchmark.

    Attributes:
        model: A preset, a shipped name, a folder or a hub id.
        width: Columns of the image.
        height: Rows of the image.
        steps: Step counts of the whole decoding.
        modes: `"eager"`, `"compiled"`.
        batch_size: Images at a time.
        memory: Whether to measure peak memory, each stage in its own process.
        refine_shares: Shares of the tokens of sparse later steps, each beside a whole step.
        exports: Folders of exports of the model, measured beside it in float32; the programs of those for torch are run.

    Raises:
        ValueError: for exports without float32 among the types.
    """

    model: str
    width: int
    height: int
    steps: tuple[int, ...]
    modes: tuple[str, ...]
    batch_size: int = 1
    memory: bool = True
    refine_shares: tuple[float, ...] = ()
    exports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.exports and torch.float32 not in self.dtypes:
            raise ValueError(
                f"exports are {', '.join(self.exports)} and dtypes {', '.join(map(name_of, self.dtypes))}; "
                "exports compute in float32: expected it among the dtypes"
            )


def build_model(name: str, device: torch.device, dtype: torch.dtype, seed: int) -> MapModel:
    """A preset with random weights, or a checkpoint, in evaluation mode.

    Raises:
        ValueError: for a checkpoint without steps to measure.
    """
    if name not in PRESETS:
        model = load_model(name, device, dtype)[0]
        if model.config.decoder_type != "denoising":
            raise ValueError(
                f"{name} has decoder_type {model.config.decoder_type!r}; expected a map decoder, whose steps are timed"
            )
        return model
    model_class, fields = PRESETS[name]
    torch.manual_seed(seed)
    return model_class(Noise2MapConfig(**fields)).to(device, dtype).eval()


def possible_steps(model: MapModel, steps: Sequence[int]) -> tuple[int, ...]:
    """Step counts that a model can run: one call of a model without diffusion, whatever is asked for."""
    return tuple(steps) if model.config.diffusion else (1,)


def open_export(folder: str, model: MapModel) -> MapModel:
    """An export whose calls can stand beside the model's.

    Raises:
        ValueError: if the folder holds none, or one of a model of other sizes.
    """
    graphs = load_model(folder, torch.device("cpu"), torch.float32, run_programs=True)[0]
    if isinstance(graphs.decoder, MapDecoder):
        raise ValueError(f"{folder!r} is a checkpoint; expected the folder of an export")
    sizes = [(one.config.hidden_size, one.codec.channels, int(one.config.num_labels)) for one in (graphs, model)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{folder!r} has {sizes[0]} features, map channels and classes, the model {sizes[1]}; expected its export")
    return graphs


def with_grid_sample(model: MapModel) -> MapModel:
    """A copy of the model whose attention reads the map with `grid_sample`; the weights are shared."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo=shared)
    for module in twin.modules():
        if isinstance(module, DeformableAttention):
            module.formulation = "grid_sample"
    return twin


def step_products(model: MapModel, tokens: int) -> list[tuple[int, int, int]]:
    """The matrix products of one decoder call as ``(rows, inner, columns)``: projection of the map, layers, head."""
    products = [(tokens, model.codec.channels, model.decoder.hidden_size)]
    # The scale and shift of a layer depend on time alone and are not part of a step.
    once = {id(layer.time) for layer in model.decoder.layers}
    for module in (*model.decoder.layers.modules(), *model.head.modules()):
        if isinstance(module, nn.Linear) and id(module) not in once:
            products.append((tokens, module.in_features, module.out_features))
        elif isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            products.append((tokens, module.in_channels * rows * columns, module.out_channels))
    return products


def floor_calls(model: MapModel, tokens: int, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """The products of a step and nothing else: by PyTorch's linear, and by oneDNN where it can."""
    operands = []
    for rows, inner, columns in step_products(model, tokens):
        x, weight = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(columns, inner, device=device, dtype=dtype)
        operands.append((x, weight, torch.randn(columns, device=device, dtype=dtype)))

    def torch_products() -> None:
        for x, weight, bias in operands:
            F.linear(x, weight, bias)

    def onednn_products() -> None:
        for x, weight, bias in operands:
            onednn_linear(x, weight, bias, None)

    calls: dict[str, Callable[[], Any]] = {"torch": torch_products}
    if available(*operands[0]):
        calls["onednn"] = onednn_products
    return calls


def stage_calls(model: MapModel, options: ModelBenchOptions, stages: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """One call for each stage: `"encode"`, `"step"` (one call of decoder and head and its update), `"decode N"`, `"all N"`.

    A number after `"step"` is the share of the tokens that are computed, the least sure ones of a first call.
    """
    dtype = model.dtype
    generator = torch.Generator().manual_seed(options.seed)
    pixels = torch.randn(options.batch_size, 3, options.height, options.width, generator=generator).to(options.device, dtype)
    features = torch.randn(options.batch_size, model.config.hidden_size, *_grid(options), generator=generator).to(
        options.device, dtype
    )
    noise = torch.randn(options.batch_size, 1, model.codec.channels, *_grid(options), generator=generator).to(options.device)
    calls: dict[str, Callable[[], Any]] = {}
    for stage in stages:
        kind, _, count = stage.partition(" ")
        if kind == "encode":
            calls[stage] = lambda: model.encode_image(pixels)
        elif kind == "step":
            calls[stage] = _step_call(model, features, tokens_in_memory(noise), float(count or 1))
        elif kind == "decode":
            calls[stage] = lambda n=int(count): model.decode_map(features, num_inference_steps=n, noise=noise)
        else:
            calls[stage] = lambda n=int(count): model(pixels, num_inference_steps=n, noise=noise)
    return calls


def _grid(options: ModelBenchOptions) -> tuple[int, int]:
    return options.height // 4, options.width // 4


def _step_call(model: MapModel, features: Tensor, x_t: Tensor, share: float) -> Callable[[], Any]:
    """The first of two steps, with its update, without what is done once for a run; of a share of the tokens: a later step."""
    (t, t_next), *_ = time_pairs(2)
    denoise = Denoiser(model, features, [(t, t_next)] * (1 if share == 1 else MAX_STEPS), refine_share=share)
    times = torch.full(x_t.shape[:1], t)
    if share < 1:
        denoise(x_t, times)  # whole: tells which tokens later ones compute
    levels = [[level.to(x_t.device) for level in model.schedule.alpha_sigma(torch.tensor(time))] for time in (t, t_next)]

    def call() -> Tensor:
        x0, _ = denoise(x_t, times)
        return add_noise(x0, eps_from_x0(x_t, x0, *levels[0]), *levels[1])

    return call


def compiled(model: MapModel) -> MapModel:
    """The model with encoder, decoder and head compiled in place; names and weights stay as they are."""
    for part in (model.encoder, model.decoder, model.head):
        part.compile(dynamic=False)
    return model


@torch.no_grad()
def run_bench(options: ModelBenchOptions) -> list[dict[str, Any]]:
    """Measure a model.

    Args:
        options: What to measure.

    Returns:
        One row for each type, mode and stage.
    """
    rows = []
    tokens = options.batch_size * (options.height // 4) * (options.width // 4)
    if "compiled" in options.modes:
        logger.info("compiling takes minutes before the first figure (--no-compile leaves it out)")
    for dtype in options.dtypes:
        model = build_model(options.model, options.device, dtype, options.seed)
        options = replace(options, steps=possible_steps(model, options.steps))
        calls: dict[str, Callable[[], Any]] = {}
        for mode in options.modes:
            ours = copy.deepcopy(model)
            stages = stage_calls(compiled(ours) if mode == "compiled" else ours, options, _stages(options))
            calls |= {f"{mode}|{stage}": call for stage, call in stages.items()}
        for mode in dict.fromkeys(("eager", *options.modes)):  # a rival is as fast as it can be
            theirs = with_grid_sample(model)
            rival = stage_calls(compiled(theirs) if mode == "compiled" else theirs, options, ["step"])
            calls[f"grid_sample|{mode}"] = rival["step"]
        exports = {folder: open_export(folder, model) for folder in options.exports if dtype == torch.float32}
        for folder, graphs in exports.items():
            calls |= {f"{folder}|{stage}": call for stage, call in stage_calls(graphs, options, _whole_stages(options)).items()}
        calls |= {f"floor|{name}": call for name, call in floor_calls(model, tokens, options.device, dtype).items()}
        kind = name_of(dtype)
        times = time_calls(calls, options, kind)
        memory = _peak_memory(options, dtype, kind) if options.memory else {}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        for mode in (*options.modes, *exports):
            for stage in _whole_stages(options) if mode in exports else _stages(options):
                row = {"model": options.model, "parameters": parameters, "size": f"{options.width}x{options.height}"}
                row |= {"batch_size": options.batch_size, "mode": mode, "stage": stage}
                row |= {"ms": median(times[f"{mode}|{stage}"])} | memory.get((mode, stage), {})
                row |= _against_eager(times, mode, stage) if mode in exports else _against(times, mode, stage)
                rows.append(
                    row
                    | {"rounds": options.rounds, "clock": options.clock, **machine_facts(options.device)}
                    | provenance(options.device, dtype, options.seed)
                )
    return rows


def _peak_memory(options: ModelBenchOptions, dtype: torch.dtype, kind: str) -> dict[tuple[str, str], dict[str, float]]:
    """``(mode, stage)`` -> peak in MiB as of `send_peak`; compiling itself does not count: the stage has run once.

    Raises:
        RuntimeError: If a process ended without an answer, for instance because it was killed for its memory.
    """
    modes = (*options.modes, *(options.exports if dtype == torch.float32 else ()))
    pairs = [(mode, stage) for mode in modes for stage in ("encode", "step", f"all {max(options.steps)}")]
    found = {}
    for mode, stage in tqdm(pairs, desc=f"{kind}, memory", unit="process"):
        arguments = (options, dtype, mode, stage, torch.get_num_threads())
        found[mode, stage] = in_own_process(_measure, arguments, f"{mode} {stage}")
    return found


def _measure(sender: Connection, options: ModelBenchOptions, dtype: torch.dtype, mode: str, stage: str, threads: int) -> None:
    torch.set_num_threads(threads)
    with torch.no_grad():
        model = build_model(options.model, options.device, dtype, options.seed)
        if mode == "compiled":
            model = compiled(model)
        elif mode in options.exports:
            model = open_export(mode, model)
        call = stage_calls(model, options, [stage])[stage]
        if mode == "compiled":
            call()
        hand_back_freed_memory()  # or the call takes what building the model has left
        send_peak(sender, call, options.device)


def _against(times: dict[str, list[float]], mode: str, stage: str) -> dict[str, Any]:
    """A step's ratios to the yardsticks, each the median over rounds of ratios within a round."""
    own = times[f"{mode}|step"]
    if stage.startswith("step "):
        return {"refined_over_step": median(a / b for a, b in zip(times[f"{mode}|{stage}"], own))}
    if stage != "step":
        return {}
    floors = {name.removeprefix("floor|"): value for name, value in times.items() if name.startswith("floor|")}
    best = min(floors.values(), key=median)
    result: dict[str, Any] = {f"floor_{name}_ms": median(value) for name, value in floors.items()}
    result["step_over_floor"] = median(a / b for a, b in zip(own, best))
    result["step_over_torch_floor"] = median(a / b for a, b in zip(own, floors["torch"]))
    rivals = {name.removeprefix("grid_sample|"): value for name, value in times.items() if name.startswith("grid_sample|")}
    fastest = min(rivals, key=lambda name: median(rivals[name]))
    theirs = rivals[fastest]
    result["grid_sample_ms"], result["grid_sample_mode"] = median(theirs), fastest
    result["grid_sample_over_step"] = median(b / a for a, b in zip(own, theirs))
    return result


def _against_eager(times: dict[str, list[float]], mode: str, stage: str) -> dict[str, float]:
    """Ratio of an export's stage to the eager model's, the median over rounds; nothing where that was not timed."""
    eager = times.get(f"eager|{stage}")
    return {} if eager is None else {"over_eager": median(a / b for a, b in zip(times[f"{mode}|{stage}"], eager))}


def _whole_stages(options: ModelBenchOptions) -> list[str]:
    return ["encode", "step", *(f"decode {count}" for count in options.steps), f"all {max(options.steps)}"]


def _stages(options: ModelBenchOptions) -> list[str]:
    encode, step, *runs = _whole_stages(options)
    return [encode, step, *(f"step {share:g}" for share in options.refine_shares), *runs]
