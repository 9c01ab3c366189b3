"""Two processes, each with its own images, compute what one process computes from all of them."""

import os
import socket

import pytest
import torch

from noise2map.metrics import (
    DepthScores,
    ExpectedCalibrationError,
    FeatureExtractor,
    FrechetDistance,
    KernelDistance,
    SegmentationScores,
    UncertaintyScores,
)


class _Colours(FeatureExtractor):
    name, size = "colours", 3

    def forward(self, images):
        return images.double().mean((2, 3)).float()


def _distances(part: slice) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 6, 3, 4, 4), generator=generator).to(torch.uint8)
    found = {}
    for metric in (FrechetDistance(_Colours()), KernelDistance(_Colours()), FrechetDistance(_Colours(), keep_features=False)):
        for real in (False, True):
            if len(images[0, part]):
                metric.update(images[int(real), part], real=real)
        found[f"{metric.metric} {metric.keep_features}"] = metric.compute().item()
        if metric.keep_features:
            result = metric.result(5)
            found |= {f"{metric.metric} count": result.samples, f"{metric.metric} width": result.high - result.low}
    return found


def _scores(part: slice) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (6, 12, 10), generator=generator)
    guess = torch.where(torch.rand(labels.shape, generator=generator) < 0.7, labels, (labels + 1) % 4)
    u = torch.rand(labels.shape, generator=generator)
    depth = 1 + 5 * torch.rand(labels.shape, generator=generator)
    maps, uncertainty, depths, ece = SegmentationScores(4), UncertaintyScores(), DepthScores(0.5, 9), ExpectedCalibrationError()
    if len(labels[part]):
        maps.update(guess[part], labels[part])
        uncertainty.update(u[part], (guess != labels)[part])
        depths.update((depth * (1 + u))[part], depth[part])
        ece.update(1 - u[part], (guess == labels)[part])
    found = {}
    for metric in (maps, uncertainty, depths, ece):
        found |= {name: float(value) for name, value in metric.compute().items() if value.ndim == 0}
    return found | _distances(part)


def _worker(rank: int, port: int, parts: list[slice], out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(_scores(parts[rank]), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("split", [2, 6])  # uneven shares; one process without any image
def test_two_processes_equal_one(tmp_path, split):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = [slice(0, split), slice(split, 6)]
    torch.multiprocessing.spawn(_worker, (port, parts, str(tmp_path)), nprocs=2)
    whole = _scores(slice(0, 6))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert found[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
