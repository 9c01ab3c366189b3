"""Two processes, each with its own images, compute what one process computes from all of them."""

import pytest
import torch
from launching import free_port
from two_processes import all_scores, worker


@pytest.mark.slow
@pytest.mark.parametrize("split", [2, 6])  # uneven shares; one process without any image
def test_two_processes_equal_one(tmp_path, split):
    parts = [slice(0, split), slice(split, 6)]
    torch.multiprocessing.spawn(worker, (free_port(), parts, str(tmp_path)), nprocs=2)
    whole = all_scores(slice(0, 6))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert found[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
