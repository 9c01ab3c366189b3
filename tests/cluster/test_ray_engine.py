"""The engine on Ray: the same files as here, whatever happens to the workers."""

import json
import socket
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from command_line import run_command
from PIL import Image
from tiny_models import tiny_depth_model

from noise2map.models import Noise2MapImageProcessor

WORDS = ("--steps", "1", "--ensemble", "2", "--batch-size", "1", "--no-panels", "--device", "cpu")


def run(capsys, *words):
    return run_command(capsys, "predict", *words)


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (40, 32)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_what_does_not_go_together_is_refused_before_any_work(photo, tmp_path, capsys, monkeypatch):
    words = (photo, "--model", "freedoom-depth-laplace-tiny", "--out", tmp_path / "out")
    for more, said in (
        (("--workers", "2"), "needs --engine ray"),
        (("--address", "auto"), "needs --engine ray"),
        (("--engine", "ray", "--memory", "2GiB"), "bounds one process"),
        (("--engine", "ray", "--device", "cuda:1"), "auto, cpu or cuda"),
    ):
        code, _, err = run(capsys, *words, *more)
        assert code == 2 and said in " ".join(err.split()), err
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = run(capsys, *words, "--engine", "ray")
    assert code == 2 and "install noise2map[scale]" in err and not (tmp_path / "out").exists()


def test_an_address_where_nobody_answers():
    pytest.importorskip("ray")
    from noise2map.cluster.engine import _check_reachable

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for form in (address, f"ray://{address}"):
            with pytest.raises(ConnectionError, match=f"no cluster of Ray at address '{form}'"):
                _check_reachable(form)
    _check_reachable("auto")


def kill_a_worker(out, total, killed):
    """Kills a worker of Ray as soon as the first shard is done."""
    lines = out / "predictions.jsonl"
    for _ in range(6000):
        if lines.is_file() and lines.read_text().count("\n"):
            for process in psutil.Process().children(recursive=True):
                if "ShardWorker" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(total - lines.read_text().count("\n"))
                    return
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path, capsys):
    pytest.importorskip("ray")
    tiny_depth_model().save_pretrained(tmp_path / "model")
    Noise2MapImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")
    random = np.random.default_rng(0)
    for index in range(32):
        path = tmp_path / "in" / f"{index // 20}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (32 + 16 * (index % 2), 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    words = (tmp_path / "in", "--model", tmp_path / "model", *WORDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: sums of several threads differ in the last bit
    try:
        assert run(capsys, *words, "--out", tmp_path / "local")[0] == 1
    finally:
        torch.set_num_threads(threads)
    killed = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "ray", 32, killed), daemon=True)
    killer.start()
    code, text, err = run(capsys, *words, "--out", tmp_path / "ray", "--engine", "ray", "--workers", "2")
    assert code == 1 and "32 predicted, 1 failed" in text and "bad.png: cannot read image" in err
    assert killed and killed[0] > 0, "no worker was killed while there was work left"
    files = [
        {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "local", tmp_path / "ray")
    ]
    local, ray = ([json.loads(line) for line in one.pop("predictions.jsonl").splitlines()] for one in files)
    assert files[0] == files[1] and len(files[0]) > 2 * 32
    assert sorted(local, key=lambda line: line["id"]) == sorted(ray, key=lambda line: line["id"])
    left = [one for one in psutil.Process().children(recursive=True) if "ray" in one.name() or "gcs" in one.name()]
    assert not left
    (tmp_path / "in" / "bad.png").unlink()
    code, text, _ = run(capsys, *words, "--out", tmp_path / "ray", "--engine", "ray", "--workers", "2")
    assert code == 0 and "0 predicted, 32 done before" in text
