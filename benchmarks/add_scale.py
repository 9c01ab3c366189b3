"""A trained depth model -> the same weights with a head that also predicts a scale, to go on from.

The median is what the model predicted; the scale begins at 0.2 everywhere; the map that diffusion fed in is empty from now on. How
freedoom-depth-laplace-tiny began:

    python benchmarks/add_scale.py freedoom-depth-tiny runs/depth-with-scale
    noise2map train decoders/depth-laplace --set model.init_from=runs/depth-with-scale --set model.encoder_from=null \\
      --set model.config.decoder_layers=4 --set data.train_limit=3000 --set train.iterations=700 --set optim.lr=5e-4
"""

import argparse
import math
from pathlib import Path

import torch

from noise2map.models import Noise2MapConfig, Noise2MapForDepthEstimation, Noise2MapImageProcessor
from noise2map.zoo import resolve_model

FIRST_SCALE = 0.2


@torch.no_grad()
def with_scale(model: Noise2MapForDepthEstimation) -> Noise2MapForDepthEstimation:
    """A model of one call with the Laplace objective, the encoder, decoder and median of another."""
    config = model.config.to_dict() | {"objective": "laplace", "diffusion": False, "self_aligned": False}
    made = Noise2MapForDepthEstimation(Noise2MapConfig.from_dict(config))
    weights = model.state_dict()
    for name in ("head.regressor.weight", "head.regressor.bias"):
        wider = torch.zeros_like(made.state_dict()[name])
        wider[:1] = weights[name]
        weights[name] = wider
    weights["head.regressor.bias"][1] = math.log(FIRST_SCALE)
    made.load_state_dict(weights)
    return made


def main() -> None:
    """Reads, widens, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="shipped name, folder or hub id")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    source = resolve_model(args.model)
    with_scale(Noise2MapForDepthEstimation.from_pretrained(source).float()).save_pretrained(args.out)
    Noise2MapImageProcessor.from_pretrained(source).save_pretrained(args.out)


if __name__ == "__main__":
    main()
