"""What the noisy map tells a DDP model at each noise level: one decoder call on the corrupted truth, level by level.

Training draws levels evenly and corrupts the truth. Where the corrupted truth gives the answer away, a training step teaches the
network to read it off rather than to see it in the image; at level 1 the map is pure noise, which is all that the first step of
a run ever gets. A second loss separates what the network is told from what it is shown: pure noise, told each level.

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

from noise2map.diffusion import image_generator
from noise2map.diffusion.ensemble import draw_noise, fold
from noise2map.inference.datasets import open_dataset
from noise2map.inference.loading import load_model
from noise2map.inference.provenance import provenance
from noise2map.report.tables import write_csv
from noise2map.training.evaluation import make_scores, predict_maps, task_of, true_map

ROOT = Path(__file__).parent.parent
LEVELS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.0)


@torch.no_grad()
def measure(model: Any, processor: Any, dataset: Any, count: int, seed: int, batch_size: int = 12) -> list[dict[str, Any]]:
    """Loss and scores of one decoder call at every level: on the truth corrupted to it, and on pure noise told that level."""
    task = task_of(model)
    levels = LEVELS if model.config.diffusion else LEVELS[:1]
    losses: dict[float, list[float]] = {t: [] for t in levels}
    blind = dict.fromkeys(levels, 0.0)
    scores = {t: make_scores(model, task) for t in levels}
    for start in tqdm(range(0, count, batch_size), unit="batch"):
        samples = [dataset[index] for index in range(start, min(start + batch_size, count))]
        pixels = processor(images=[sample["image"] for sample in samples], return_tensors="pt")["pixel_values"]
        truths = [true_map(sample, task) for sample in samples]
        labels = torch.stack(truths)
        features = model.encode_image(pixels)
        sizes = [tuple(truth.shape) for truth in truths]
        context = model.decoder.prepare(features)
        for t in levels:
            generators = [image_generator(seed, str(sample["id"])) for sample in samples]  # the same noise at every level
            times = torch.full((len(samples),), t)
            loss, readout = model._training_loss(features, labels, None, times, generators)
            losses[t].append(float(loss) * len(samples))
            if model.config.diffusion:
                generators = [image_generator(seed, str(sample["id"])) for sample in samples]
                noise = fold(draw_noise((1, model.codec.channels, *features.shape[-2:]), generators, features.device))
                blind[t] += float(model._task_loss(model._predict_at(context, noise, times), labels)) * len(samples)
            outputs = model._output(readout, None, "last")
            for prediction, truth in zip(predict_maps(outputs, processor, task, sizes), truths):
                scores[t].update(prediction[None], truth[None])
    rows = []
    for t in levels:
        alpha, sigma = (float(level) for level in model.schedule.alpha_sigma(torch.tensor(t)))
        found = {name: float(value) for name, value in scores[t].compute().items() if value.ndim == 0}
        rows.append(
            {"t": t, "alpha_over_sigma": alpha / sigma, "loss": sum(losses[t]) / count, "loss_told_t_on_noise": blind[t] / count}
            | found
        )
    return rows


def main() -> None:
    """Measures one model, and another one beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--compare", help="the same network without diffusion")
    parser.add_argument("--root", required=True, help="rendered frames of Freedoom")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=360, help="frames, evenly over the data set")
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
        for row in measure(model, processor, chosen, count, options.seed):
            rows.append({"model": Path(name).parent.name if "/" in name else name, "images": count} | row | source)
            print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    write_csv(ROOT / "results" / f"noise_levels_{task}.csv", rows)


if __name__ == "__main__":
    main()
