"""Shards: where they begin, and that one done elsewhere is done as a whole or not at all."""

import itertools
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_segmenter

from noise2map.inference.folder import predict_folder
from noise2map.inference.predictor import Predictor
from noise2map.inference.resuming import plan_images
from noise2map.inference.shards import SHARD_BATCHES, ShardPredictor, cut_shards
from noise2map.inference.sources import find_images
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.decoding import PredictionOptions
from noise2map.runs.output_folder import OutputFolder


def test_shards_are_runs_of_what_was_found(tmp_path):
    for index in range(20):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{index:02}.png")
    for name in "ab":
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for index in range(2):
                tar.add(tmp_path / f"{index:02}.png", f"{index}.png")
    found = find_images(str(tmp_path / "*.*"))
    with OutputFolder(tmp_path / "out") as out:
        images = plan_images(found, out).images
    shards = cut_shards(found, images, 1)
    assert [one.id for shard in shards for one in shard.images] == list(found.images)
    names = [[one.id.rpartition("/")[0] for one in shard.images] for shard in shards]
    assert [len(one) for one in names] == [SHARD_BATCHES, SHARD_BATCHES, 4, 2, 2]
    assert all(len(set(one)) == 1 for one in names)  # no shard reaches over the end of a tar
    later = cut_shards(found, images[:3] + images[8:10], 1)
    assert [(shard.number, len(shard.images)) for shard in later] == [(0, 3), (1, 2)]


def test_an_engine_that_stops_has_done_whole_shards(tmp_path):
    """Images come from each of three shards in turn; the run is stopped when the first and the last, short one are complete."""
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for index in range(20):
        size = (20 + 10 * (index % 2), 32)
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{index:02}.png")
    (tmp_path / "in" / "03.png").write_bytes(b"no image")
    predictor = Predictor(tiny_segmenter(), Noise2MapImageProcessor(size={"shortest_edge": 32}))
    stopped, asked = [], []

    def in_turn(shards, job):
        asked[:] = [len(shard.images) for shard in shards]
        for outcomes in itertools.zip_longest(*(ShardPredictor(predictor, job)(shard) for shard in shards)):
            for one in filter(None, outcomes):
                yield one
                if stopped and one.shard == 0 and one.id == stopped[0]:
                    raise KeyboardInterrupt

    def run(out, engine=None):
        options = PredictionOptions(num_inference_steps=1)
        return predict_folder(
            tmp_path / "in", tmp_path / out, predictor, options, batch_size=1, panels=False, progress=False, engine=engine
        )

    def contents(out):
        return {path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out).rglob("*.png")}

    assert set(run("local").failed) == {"03.png"}
    stopped.append("07.png")
    with pytest.raises(KeyboardInterrupt):
        run("out", in_turn)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    done = SHARD_BATCHES - 1 + 4
    written = [path for path in contents("out") if path.parts[0] == "labels"]
    assert len(lines) == done < len(written)  # files of the second shard are there, and do not count
    stopped.clear()
    report = run("out", in_turn)
    assert asked == [1, SHARD_BATCHES]  # of the shard that is done the broken image alone
    assert len(report.skipped) == done and set(report.failed) == {"03.png"}
    assert contents("out") == contents("local")
