"""Models, guidance and commands on a device other than the CPU; see `pretended_device` for what that shows without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("shapely")
pytest.importorskip("cv2")

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKS = (
    "completion",
    "segmentation",
    "depth",
    "normals",
    "bird's-eye view with LiDAR",
    "guidance",
    "predict",
    "evaluate",
    "evaluate generator",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this PyTorch cannot take a device that is written in Python",
    ),
]


@pytest.fixture(scope="module")
def answers():
    """What went wrong in each check; a process of its own, for the device stays registered."""
    done = subprocess.run(
        [sys.executable, str(FIXTURES / "second_device_checks.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(FIXTURES), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_a_second_device_gives_what_the_cpu_gives(answers, check):
    assert not answers[check], answers[check]


def test_all_checks_are_listed(answers):
    assert list(answers) == list(CHECKS)


def test_a_tensor_left_behind_is_refused():
    """The pretended device itself: it would not show anything if it let mixed devices pass."""
    program = (
        "import torch; from pretended_device import DEVICE\n"
        "here, there = torch.ones(3), torch.ones(3, device=DEVICE)\n"
        "for wrong in (lambda: here + there, lambda: here[torch.zeros(1, dtype=int, device=DEVICE)], lambda: there.numpy(),\n"
        "              lambda: torch.randn(2, generator=torch.Generator(), device=DEVICE)):\n"
        "    try: wrong()\n"
        "    except (RuntimeError, TypeError): continue\n"
        "    raise SystemExit('passed')\n"
        "assert (there + 1).cpu().tolist() == [2, 2, 2] and (there * torch.tensor(2.0)).device == DEVICE\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(FIXTURES)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
