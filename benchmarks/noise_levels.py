"""What the noisy map tells a model at each noise level: one decoder call, told a level and shown one of three maps.

Pure noise: what being told the level alone changes. Its own guess (from pure noise), corrupted to the level: what refinement
gains, as in sampling. The truth, corrupted likewise: how far the map is read at all, as in training. At level 1 all three are
the same, the first step of every run.

    python benchmarks/noise_levels.py --model freedoom-segmentation-tiny --root data/freedoom/test --limit 360 \
        --compare runs/freedoom-segmentation-tiny-nodiffusion/final
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from noise2map.data.opening import open_dataset
from noise2map.diffusion import image_generator
from noise2map.diffusion.ensemble import draw_noise, fold
from noise2map.diffusion.process import add_noise
from noise2map.inference.loading import load_model
from noise2map.report.tables import read_csv, write_csv
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of

ROOT = Path(__file__).parent.parent
LEVELS = (1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0)
SHOWN = ("noise", "own guess", "truth")


@torch.no_grad()
def measure(model: Any, processor: Any, samples: list[Any], seed: int, batch_size: int = 12) -> list[dict[str, Any]]:
    """Loss and scores of one decoder call told each level and shown each kind of map, corrupted by the same noise."""
    task, count = task_of(model), len(samples)
    levels, shown = (LEVELS, SHOWN) if model.config.diffusion else (LEVELS[:1], SHOWN[:1])
    losses = {(t, kind): 0.0 for t in levels for kind in shown}
    scores = {key: task.training_metric(model.config) for key in losses}
    for start in tqdm(range(0, count, batch_size), unit="batch"):
        batch = samples[start : start + batch_size]
        pixels = processor(images=[sample["image"] for sample in batch], return_tensors="pt")["pixel_values"]
        truths = [task.truth(sample) for sample in batch]
        labels, sizes = torch.stack(truths), [tuple(truth.shape) for truth in truths]
        features = model.encode_image(pixels)
        context = model.decoder.prepare(features)
        generators = [image_generator(seed, str(sample["id"])) for sample in batch]
        noise = fold(draw_noise((1, model.codec.channels, *features.shape[-2:]), generators, features.device))
        if not model.config.diffusion:
            noise = torch.zeros_like(noise)
        guess = model.prediction_encoder()(model.predict_at(context, noise, torch.ones(len(batch))))
        truth = model.encode_labels(labels, tuple(features.shape[-2:]))
        for t, kind in losses:
            times = torch.full((len(batch),), t)
            x0 = {"noise": None, "own guess": guess, "truth": truth}[kind]
            x_t = noise if x0 is None else add_noise(x0, noise, *model.schedule.alpha_sigma(times))
            readout = model.predict_at(context, x_t, times)
            losses[t, kind] += float(model.loss(readout, labels)) * len(batch)
            for prediction, target in zip(task.maps(model.make_output(readout), processor, sizes), truths):
                scores[t, kind].update(prediction[None], target[None])
    rows = []
    for (t, kind), loss in losses.items():
        alpha, sigma = (float(level) for level in model.schedule.alpha_sigma(torch.tensor(t)))
        found = {name: float(value) for name, value in scores[t, kind].compute().items() if value.ndim == 0}
        rows.append({"t": t, "alpha_over_sigma": alpha / sigma, "shown": kind, "loss": loss / count} | found)
    return rows


def run_name(model: str) -> str:
    """What a model is called in the table: the run it comes from, where it is the ``final`` of one."""
    path = Path(model)
    return path.parent.name if path.name == "final" else path.name


def main() -> None:
    """Measures one model, and another one beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--compare", help="another model beside it, e.g. the same network without diffusion")
    parser.add_argument("--root", required=True, help="rendered frames of Freedoom")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=360, help="frames, evenly over the dataset")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, device = [], torch.device("cpu")
    for name in filter(None, (options.model, options.compare)):
        model, processor = load_model(name, device, torch.float32)
        task = task_of(model)
        dataset = open_dataset("freedoom", options.root, options.split, task, model.config.id2label)
        count = min(options.limit, len(dataset))
        chosen = [dataset[index] for index in torch.linspace(0, len(dataset) - 1, count).long().tolist()]
        source = provenance(device, torch.float32, options.seed)
        source["command"] = shlex.join(["python", "benchmarks/noise_levels.py", *sys.argv[1:]])
        for row in measure(model, processor, chosen, options.seed):
            rows.append({"model": run_name(name), "images": count} | row | source)
            print("  ".join(f"{key} {value if isinstance(value, str) else format(value, '.4g')}" for key, value in row.items()))
    path = ROOT / "results" / f"noise_levels_{task}.csv"
    fresh = {row["model"] for row in rows}
    kept = [row for row in read_csv(path) if row["model"] not in fresh] if path.exists() else []
    write_csv(path, kept + rows)


if __name__ == "__main__":
    main()
