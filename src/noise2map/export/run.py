"""Maps of images from the exported graphs beside this file: NumPy, Pillow and onnxruntime, no torch.

python run.py IMAGE --out map.png [--steps N] [--samples R] [--seed S]
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MIN_SIDE, MAX_STRIP = 32, 8


# ---- the sampling loop -----------------------------------------------------------------------------------------------------


def log_snr(config: dict[str, Any], t: float, dtype: Any = np.float32) -> Any:
    """Log signal-to-noise ratio at a time, in the order of operations of the model: near t = 1 rounding counts."""
    t = dtype(t)
    if config["noise_schedule"] == "linear":
        return -np.log(np.expm1(dtype(1e-4) + dtype(10.0) * t * t))
    cosine = np.cos((t + dtype(2e-4)) / dtype(1 + 2.5e-4) * dtype(math.pi) * dtype(0.5))
    return -np.log(np.maximum(dtype(1) / (cosine * cosine) - dtype(1), max(dtype(config["min_inverse_snr"]), np.finfo(dtype).tiny)))


def levels(config: dict[str, Any], t: float) -> tuple[Any, Any]:
    """Signal and noise levels, alpha and sigma."""
    if config["noise_schedule"] == "cosine" and config["min_inverse_snr"] == 0:
        gamma = np.cos((np.float32(t) + np.float32(2e-4)) / np.float32(1.00025) * np.float32(math.pi) / np.float32(2)) ** 2
        return np.sqrt(gamma), np.sqrt(1 - gamma)
    ratio = log_snr(config, t)
    return np.sqrt(1 / (1 + np.exp(-ratio))), np.sqrt(1 / (1 + np.exp(ratio)))


def time_pairs(config: dict[str, Any], count: int) -> list[tuple[float, float]]:
    """Time of each call, and the time that its map moves to."""
    if config["time_grid"] == "uniform":
        return [(1 - i / count, max(1 - (i + 1 + config["time_difference"]) / count, 0.0)) for i in range(count)]
    share = np.linspace(0, 1, max(count - 1, 1))
    large, small = (10 * config["map_scale"]) ** (1 / 7), (0.1 * config["map_scale"]) ** (1 / 7)
    times = [1.0, *(time_of(config, -2 * math.log((large + s * (small - large)) ** 7)) for s in share)][:count]
    return list(zip(times, [*times[1:], 0.0]))


def time_of(config: dict[str, Any], ratio: float) -> float:
    """Inverse of `log_snr`."""
    if config["noise_schedule"] == "linear":
        return min(math.sqrt(max(math.log1p(math.exp(-ratio)) - 1e-4, 0) / 10), 1.0)
    return min(max(math.acos(math.sqrt(1 / (1 + math.exp(-ratio)))) * 2 / math.pi * 1.00025 - 2e-4, 0.0), 1.0)


def denoise(
    config: dict[str, Any],
    step: Callable[..., list[np.ndarray]],
    x: np.ndarray,
    count: int,
    draw: Callable[[], np.ndarray],
    latent: Callable[[], np.ndarray | None],
) -> Iterator[np.ndarray]:
    """The maps ``(B, R, K, h, w)`` of all calls of a run from noise ``x`` ``(B, R, M, h, w)``; ``draw`` gives fresh noise."""
    before, width_before = None, 0.0
    pairs = time_pairs(config, count)
    for index, (t, following) in enumerate(pairs):
        _, values, clean = step(x, np.float32([t]), latent())
        yield values
        if index + 1 == count:
            return
        (alpha, sigma), (alpha_next, sigma_next) = levels(config, t), levels(config, following)
        if config["sampler"] == "ddpm":
            c = -np.expm1(log_snr(config, t) - log_snr(config, following))
            x = alpha_next * (x * (1 - c) / alpha + c * clean)
            fresh = draw() if following > 0 else 0
            x = (x + np.sqrt(np.maximum(sigma_next**2 * c, 1e-20)) * fresh).astype(np.float32)
        elif config["sampler"] == "dpmpp_2m":
            width = float(log_snr(config, following, np.float64) - log_snr(config, t, np.float64)) / 2
            mean = clean
            if before is not None and following > 0 and width_before > 0:
                mean = clean + width / width_before / 2 * (clean - before)
            x = (sigma_next / sigma * x - alpha_next * np.float32(math.expm1(-width)) * mean).astype(np.float32)
            before, width_before = clean, width
        else:
            noise = (x - alpha * clean) / np.maximum(sigma, 1e-8)
            if config["churn"] > 0:
                noise = math.sqrt(1 - config["churn"] ** 2) * noise + config["churn"] * draw()
            x = (alpha_next * clean + sigma_next * noise).astype(np.float32)


# ---- noise: the numbers that torch draws on the CPU for this seed and image --------------------------------------------------


class Noise:
    """Standard normal numbers of a Mersenne twister (Box & Muller), in blocks of 16 as torch takes them."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
        self.bits = np.random.RandomState((int.from_bytes(digest, "little") >> 1) & 0xFFFFFFFF)
        self.left: float | None = None

    def raw(self, count: int) -> np.ndarray:
        """The next numbers of 32 bits."""
        return np.frombuffer(self.bits.bytes(4 * count), dtype="<u4")

    def __call__(self, *shape: int) -> np.ndarray:
        """Numbers ``shape``, float32."""
        count = math.prod(shape)
        if count < 16:
            return np.array([self.one() for _ in range(count)], np.float32).reshape(shape)
        uniform = (self.raw(count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
        values = _box_muller(uniform[: count // 16 * 16])
        if count % 16:  # the last 16 are drawn anew
            last = (self.raw(16) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
            values = np.concatenate([values[: count - 16], _box_muller(last)])
        return values.reshape(shape)

    def one(self) -> float:
        """A single number, in double precision; every second one is left over from the one before."""
        if self.left is not None:
            value, self.left = self.left, None
            return value
        high, low, high2, low2 = (int(one) for one in self.raw(4))
        first, second = (((a << 32 | b) & (2**53 - 1)) * 2.0**-53 for a, b in ((high, low), (high2, low2)))
        radius = math.sqrt(-2 * math.log1p(-second))
        self.left = radius * math.sin(2 * math.pi * first)
        return radius * math.cos(2 * math.pi * first)

    def blocky(self, channels: int, samples: int, rows: int, columns: int) -> np.ndarray:
        """Noise ``(R, n, h, w)``, channel i constant over blocks of 4^i cells."""
        parts = []
        for size in (4**index for index in range(channels)):
            coarse = self(samples, 1, -(-rows // size), -(-columns // size))
            parts.append(coarse.repeat(size, 2).repeat(size, 3)[..., :rows, :columns])
        return np.concatenate(parts, 1)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    pairs = uniform.reshape(-1, 2, 8)
    radius, angle = np.sqrt(np.float32(-2) * np.log(1 - pairs[:, 0])), np.float32(2 * math.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)


# ---- images in, maps out -----------------------------------------------------------------------------------------------------


def read_image(path: str) -> Image.Image:
    """An image file as upright 8-bit RGB; transparent parts are laid on white."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 65535):
            raise ValueError(f"it holds values from {values.min():g} to {values.max():g}; expected 0..65535, or 0..1")
        top = next(top for top in (1, 255, 65535) if values.max() <= top) if image.mode == "F" else 65535
        image = Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def processed_size(processor: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Height and width at which the model sees an image."""
    size = processor["size"]
    if not processor["do_resize"]:
        return max(height, MIN_SIDE), max(width, MIN_SIDE)
    both = [size[name] for name in ("height", "width") if size.get(name)]
    if len(both) == 2 and not processor.get("keep_aspect_ratio", True):
        return max(MIN_SIDE, both[0]), max(MIN_SIDE, both[1])
    shortest = min(both) if len(both) == 2 else size["shortest_edge"]
    ratio = shortest / min(height, width)
    if ratio > 1:
        ratio = min(ratio, max(1.0, MAX_STRIP * shortest / max(height, width)))
    if size.get("longest_edge"):
        ratio = min(ratio, size["longest_edge"] / max(height, width))
    return max(MIN_SIDE, round(height * ratio)), max(MIN_SIDE, round(width * ratio))


def prepare(processor: dict[str, Any], image: Image.Image) -> np.ndarray:
    """An image -> normalised pixels ``(1, 3, H, W)``."""
    height, width = processed_size(processor, image.height, image.width)
    if (width, height) != image.size:
        image = image.resize((width, height), processor["resample"])
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
    if processor["do_rescale"]:
        pixels = pixels * np.float32(processor["rescale_factor"])
    if processor["do_normalize"]:
        mean, std = (np.float32(processor[name])[:, None, None] for name in ("image_mean", "image_std"))
        pixels = (pixels - mean) / std
    return np.ascontiguousarray(pixels[None])


def resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize of ``(K, h, w)``, pixel areas aligned."""
    for axis, size in ((1, height), (2, width)):
        old = values.shape[axis]
        if size != old:
            position = np.clip((np.arange(size) + 0.5) * (old / size) - 0.5, 0, old - 1)
            start = np.floor(position).astype(int)
            weight = (position - start).astype(np.float32).reshape(-1, *[1] * (2 - axis))
            low, high = values.take(start, axis), values.take(np.minimum(start + 1, old - 1), axis)
            values = low + (high - low) * weight
    return values


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors ``(3, h, w)`` of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=0, keepdims=True), np.finfo(np.float32).tiny)


def finish(
    about: dict[str, Any], config: dict[str, Any], runs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Maps ``(R, K, h, w)`` of each call -> class ids ``(H, W)``, metres ``(H, W)`` or vectors ``(H, W, 3)``."""
    kept = np.stack(runs if config["average"] == "steps" else runs[-1:])
    if about["classes"] and config["average"] == "steps":
        kept = np.exp(kept - kept.max(2, keepdims=True))
        kept /= kept.sum(2, keepdims=True)
    values = kept.mean((0, 1))
    directions = not about["classes"] and not about["metres"]
    if about["metres"]:
        values = values.clip(config["min_depth"], config["max_depth"])
    elif directions:
        values = unit(values)
    for height, width in sizes:
        values = resize(values, height, width)
        if directions:
            values = unit(values)
    if about["classes"]:
        return values.argmax(0).astype(np.uint8 if len(values) <= 256 else np.uint16)
    return values[0] if about["metres"] else values.transpose(1, 2, 0)


def write(about: dict[str, Any], path: Path, values: np.ndarray) -> None:
    """A map as .npy, or as an image: class ids with colors, depth in 16 bits, vectors as 128 + 127 n."""
    if path.suffix == ".npy":
        np.save(path, values)
        return
    if about["metres"]:
        image = Image.fromarray(np.rint(values.astype(float) * about["units_per_metre"]).clip(0, 65535).astype(np.uint16))
    else:
        image = Image.fromarray(values if about["classes"] else np.rint(128 + 127 * values.clip(-1, 1)).astype(np.uint8))
    if image.mode == "L":
        image.putpalette(np.asarray(about["palette"], np.uint8).tobytes())
    image.save(path)


def predict(folder: Path, image: Image.Image, name: str, steps: int | None, samples: int | None, seed: int) -> np.ndarray:
    """The map of an image at its size; ``name`` and ``seed`` fix its noise."""
    import onnxruntime

    about, processor = (
        json.loads((folder / file).read_text(encoding="utf-8")) for file in ("export.json", "preprocessor_config.json")
    )
    config = about["config"]
    if not config["diffusion"] and any(count not in (None, 1) for count in (steps, samples)):
        raise ValueError(f"this model makes its map by one call; got {steps or 1} steps and {samples or 1} samples")
    try:
        encoder, decoder = (onnxruntime.InferenceSession(str(folder / f"{part}.onnx")) for part in ("encoder", "step"))
    except Exception as error:  # onnxruntime's own have no other base
        raise ValueError(f"cannot open the graphs in {folder}: {str(error).splitlines()[0]}") from error
    one_pass = not config["diffusion"] or (config["sampling"] != "diffusion" and steps in (None, 1) and samples in (None, 1))
    steps = 1 if one_pass else steps or config["num_inference_steps"]
    samples = 1 if one_pass else samples or config["ensemble_size"]
    pixels = prepare(processor, image)
    features = encoder.run(None, {"pixel_values": pixels})[0]
    rows, columns = features.shape[-2:]
    noise, shape, channels = Noise(seed, name), (samples, about["map_channels"], rows, columns), config["noise_channels"]
    x = noise(*shape)[None] if config["diffusion"] else np.zeros((1, *shape), np.float32)

    def latent() -> np.ndarray | None:
        if not channels:
            return None
        drawn = np.zeros((samples, channels, rows, columns)) if one_pass else noise.blocky(channels, samples, rows, columns)
        return drawn[None].astype(np.float32)

    def step(x: np.ndarray, t: np.ndarray, extra: np.ndarray | None) -> list[np.ndarray]:
        inputs = {"features": features, "noisy_map": x, "time": t}
        return decoder.run(None, inputs if extra is None else {**inputs, "noise": extra})

    runs = [values[0] for values in denoise(config, step, x, steps, lambda: noise(*shape)[None], latent)]
    return finish(about, config, runs, [pixels.shape[-2:], (image.height, image.width)])


def main() -> None:
    """Reads an image, writes its map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--out", type=Path, default=Path("map.png"), help="an image file, or .npy for the numbers themselves")
    parser.add_argument("--steps", type=int, help="decoder calls; by default the model's")
    parser.add_argument("--samples", type=int, help="noise samples, whose mean the map is; by default the model's")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in ("steps", "samples"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}; expected at least 1")
    if not given.out.absolute().parent.is_dir():
        parser.error(f"there is no folder {given.out.parent} to write {given.out.name} to")
    try:
        image = read_image(given.image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        parser.error(f"cannot read image {given.image}: {error}")
    folder = Path(__file__).parent
    try:
        values = predict(folder, image, Path(given.image).name, given.steps, given.samples, given.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        write(json.loads((folder / "export.json").read_text(encoding="utf-8")), given.out, values)
    except (OSError, ValueError) as error:
        parser.error(f"cannot write {given.out}: {error}")
    print(f"{given.out}: {values.shape[1]}x{values.shape[0]}")


if __name__ == "__main__":
    main()
