"""Makes bev_float64.npz: the training step of the camera + LiDAR model by this library in float64 (7 minutes, 5 GB of memory).

    PYTHONPATH=src:tests/fixtures:tests/models/bev python tests/golden/bev_float64.py

What autograd keeps goes to a temporary folder, 20 GB. Points are put into the recorded cells: the few that lie on a border fall
into other cells in float64 or on another processor, and this is not to be measured here.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from golden_reference import GOLDEN, gradient_norms
from test_golden_bev import exact_gradients, numbers, train_step, weights

from noise2map.convert import load_official_ddp


class Stored:
    """A tensor in a file, which goes when it is no longer needed."""

    def __init__(self, path, tensor):
        self.path = path
        torch.save(tensor.detach().clone(), path)

    def __del__(self):
        self.path.unlink(missing_ok=True)


def main():
    model = load_official_ddp(weights("bev_fusion"), "bev").double()
    with tempfile.TemporaryDirectory() as folder:
        count = itertools.count()

        def pack(tensor):
            small = tensor.is_leaf or tensor.numel() < 500_000 or not tensor.is_floating_point()
            return tensor if small else Stored(Path(folder) / str(next(count)), tensor)

        with torch.autograd.graph.saved_tensors_hooks(
            pack, lambda kept: torch.load(kept.path) if isinstance(kept, Stored) else kept
        ):
            loss = train_step(model, True, torch.float64)
    norms = gradient_norms(model)
    np.savez_compressed(
        GOLDEN / "bev_float64.npz",
        loss=np.float64(loss),
        norms=np.array([norms[key] for key in sorted(exact_gradients(numbers()["fusion_gradients"]))]),
        lidar_conv_input_grad=model.encoder.lidar.conv_input[0].weight.grad.float().numpy(),
    )


if __name__ == "__main__":
    main()
