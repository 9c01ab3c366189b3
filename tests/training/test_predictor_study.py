import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from tiny_guidance import tiny_unet
from tiny_training import tiny_model, tiny_processor

from noise2map.cli import main
from noise2map.data.opening import open_dataset
from noise2map.guidance import DepthPredictor, UNetFeatureTap
from noise2map.inference.depth_models import DepthModel
from noise2map.report.tables import read_csv
from noise2map.runs.output_folder import locked
from noise2map.training.generators.depth_labels import LabelledImages, choose, read_images
from noise2map.training.generators.predictor_study import PredictorStudyOptions, run_predictor_study, without_probes

CPU = torch.device("cpu")


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "depth-predictor", *map(str, arguments)])
    return exit_.value.code


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """A generator, and pictures with depth in millimetres: brightness falls with distance; the corner is not known."""
    root = tmp_path_factory.mktemp("rooms")
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(root / "generator")
    for split, count in (("train", 6), ("val", 3)):
        for name in ("images", "maps"):
            (root / split / name).mkdir(parents=True)
        for index in range(count):
            ramp = np.repeat(np.linspace(1, 9 - index * 0.3, 20)[:, None], 24, axis=1)
            depth = (ramp * 1000).astype(np.uint16)
            depth[:3, :5] = 0
            grey = (250 - ramp * 25).astype(np.uint8)
            Image.fromarray(grey).save(root / split / "images" / f"{index}.png")
            Image.fromarray(depth).save(root / split / "maps" / f"{index}.png")
    return root


def command(rooms, out):
    data = ["--dataset", "folder", "--root", rooms / "train", "--val-root", rooms / "val", "--out", out]
    sizes = ["--steps", 2, "--batch-size", 2, "--timesteps", "50,400", "--val-images", 2, "--max-depth", 12]
    return ["--model", rooms / "generator", *data, *sizes]


def test_study_writes_predictors_table_and_plots_and_goes_on(rooms, tmp_path, capsys):
    out = tmp_path / "study"
    assert run(*command(rooms, out), "--counts", "2,5") == 0
    assert "predictor written to" in capsys.readouterr().out
    rows = read_csv(out / "accuracy.csv")
    assert {row["images_trained"] for row in rows} == {2, 5}
    assert {str(row["blocks"]) for row in rows if row["images_trained"] == 2} == {"2,4,5,6,7", "6"}
    assert {str(row["blocks"]) for row in rows if row["images_trained"] == 5} == {"2,4,5,6,7", *map(str, range(9))}
    assert all(0 <= row["delta1"] <= 1 and row["abs_rel"] > 0 and row["labels"] == "truth" for row in rows)
    for name in ("accuracy_by_block", "accuracy_by_timestep", "delta1_by_images", "abs_rel_by_images"):
        assert Image.open(out / f"{name}.png").width > 400
    final, probed = (DepthPredictor.from_pretrained(out / name) for name in ("final", "images-0005"))
    assert final.branches == ((2, 4, 5, 6, 7), (6,)) and len(probed.branches) == 10
    final.check_unet(tiny_unet())

    before = (out / "images-0002" / "scores.json").stat().st_mtime_ns
    assert run(*command(rooms, out), "--counts", "2,5,6") == 0
    assert (out / "images-0002" / "scores.json").stat().st_mtime_ns == before
    assert run(*command(rooms, out), "--counts", "2,5,6", "--seed", 1) == 2
    assert "other settings (seed, images)" in capsys.readouterr().err
    table = (out / "accuracy.csv").read_bytes()
    assert run(*command(rooms, out), "--counts", "2,4") == 2  # the table and the final predictor would lose the others
    assert "predictors of 5, 6 images, too" in (error := capsys.readouterr().err) and "--counts 2,4,5,6" in error
    assert (out / "accuracy.csv").read_bytes() == table


def test_a_predictor_of_other_weights_images_or_depth_is_not_taken_up(tmp_path):
    torch.manual_seed(0)
    unet, images = tiny_unet(), torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8)
    depth_m = 1 + torch.rand(3, 16, 16)
    plan = PredictorStudyOptions(counts=(2,), steps=1, batch_size=2, timesteps=(10,), min_depth=0.5, max_depth=12.0, probe=False)

    def study(unet=unet, train=depth_m, test=depth_m, plan=plan, scheduler=None):
        labelled = [LabelledImages(images, depth, True, "truth") for depth in (train, test)]
        return run_predictor_study(unet, scheduler or DDPMScheduler(), *labelled, tmp_path, plan, {})

    rows = study()
    assert study() == rows
    with pytest.raises(ValueError, match=r"other settings \(images\)"):
        study(train=depth_m * 1000)  # another --depth-scale, or another model behind the same name
    with pytest.raises(ValueError, match=r"other settings \(scored images\)"):
        study(test=depth_m + 1)
    with pytest.raises(ValueError, match=r"other settings \(scheduler\)"):
        study(scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    with torch.no_grad():
        other = tiny_unet()
        other.load_state_dict(unet.state_dict())
        other.conv_in.bias += 1
    with pytest.raises(ValueError, match=r"other settings \(generator\)"):
        study(unet=other)
    with pytest.raises(ValueError, match=r"other settings \(probe\)"):
        study(plan=replace(plan, probe=True))
    more = study(train=torch.cat([depth_m[:2], depth_m[2:] + 1]), plan=replace(plan, counts=(2, 3)))
    assert more[: len(rows)] == rows and len(more) == 2 * len(rows)


def test_dropping_probes_changes_no_depth():
    unet = tiny_unet()
    torch.manual_seed(0)
    probed = DepthPredictor.for_unet(unet, hidden_sizes=(8,), time_embed_dim=8, probe_blocks=[[0], [8]]).eval()
    smaller = without_probes(probed)
    with torch.no_grad(), UNetFeatureTap(unet, range(9)) as tap:
        unet(torch.randn(1, 3, 16, 16), 10)
        for blocks in smaller.branches:
            assert torch.equal(smaller(tap.features, 10, blocks), probed(tap.features, 10, blocks))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in probed.parameters())


def test_true_labels_are_those_of_the_middle_square(rooms):
    dataset = open_dataset("folder", rooms / "train", task="depth")
    found = read_images(dataset, [4, 0], 10, "truth")
    assert found.images.shape == (2, 3, 10, 10) and found.metric
    middle = dataset[4]["depth_m"][:, 2:22]
    np.testing.assert_array_equal(found.depths[0].numpy(), middle[1::2, 1::2])
    filled = found.with_far(12.0).depths
    assert (filled[found.depths == 0] == 12).all() and (filled[found.depths > 0] == found.depths[found.depths > 0]).all()


def test_fewer_pictures_are_a_part_of_more():
    assert choose(50, 30, 3)[:10] == choose(50, 10, 3) and len(set(choose(50, 50, 3))) == 50
    assert choose(10, 3, None) == [0, 4, 9]
    with pytest.raises(ValueError, match="11 labelled images are asked for, but there are 10"):
        choose(10, 11, 0)


def test_our_depth_model_labels(rooms, tmp_path, capsys):
    model = tiny_model("depth").eval()
    model.save_pretrained(tmp_path / "depth")
    tiny_processor().save_pretrained(tmp_path / "depth")
    out = tmp_path / "study"
    pictures = [*command(rooms, out), "--root", rooms / "train" / "images", "--val-labels", "truth", "--no-by-block"]
    assert run(*pictures, "--labels", tmp_path / "depth", "--counts", 2) == 0
    row = read_csv(out / "accuracy.csv")[0]
    assert row["labels"] == str(tmp_path / "depth") and row["scored_against"] == "truth"
    tiny_model().save_pretrained(tmp_path / "classes")
    tiny_processor().save_pretrained(tmp_path / "classes")
    assert run(*pictures, "--labels", tmp_path / "classes", "--counts", 2) == 2
    assert "expected a model for depth" in capsys.readouterr().err


def test_a_depth_model_labels_whole_pictures_before_they_are_cut(rooms):
    """Depth of the model is that of the picture, not of its middle square; its metres stay metres."""

    class RowsBelow(DepthModel):
        metric = True

        def predict(self, images):
            self.seen = tuple(images.shape)
            return torch.arange(1.0, images.shape[-1] + 1).expand(len(images), *images.shape[-2:])

        def parameters(self, recurse=True):
            return iter([torch.zeros(())])

    labeller = RowsBelow()
    dataset = open_dataset("folder", rooms / "train", task="image")
    found = read_images(dataset, [0], 20, "rows", labeller)
    assert labeller.seen == (1, 3, 20, 24) and found.metric and found.source == "rows"
    np.testing.assert_array_equal(found.depths[0, 0].numpy(), np.arange(3.0, 23.0))  # columns 2 to 21 of 24


def test_relative_labels_make_a_relative_predictor(tmp_path):
    images = torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8)
    pictures = LabelledImages(images, torch.rand(3, 16, 16), False, "dpt")
    plan = PredictorStudyOptions(counts=(3,), steps=1, batch_size=2, timesteps=(10,), probe=False)
    rows = run_predictor_study(tiny_unet(), DDPMScheduler(), pictures, pictures, tmp_path / "out", plan, {})
    assert all(row["l1"] > 0 and "delta1" not in row for row in rows)
    assert not DepthPredictor.from_pretrained(tmp_path / "out" / "final").depth_range.metric
    assert json.loads((tmp_path / "out" / "final" / "scores.json").read_text())["plan"]["steps"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (["--counts", "7"], "7 labelled images are asked for, but there are 6"),
        (["--timesteps", "1000"], "below the process's 1000"),
        (["--strong", "2,20"], "(2, 20); expected decoder blocks of the U-Net, 0 to 8"),
        (["--strong", "6"], "expected different ones"),
        (["--labels", "nowhere"], "model 'nowhere' is neither"),
        (["--root", "nowhere"], "nowhere"),
        (["--dataset", "lsun"], "LSUN has no maps; it cannot be used for depth"),
        (["--model", "./nowhere"], "./nowhere"),
    ],
)
def test_mistakes_are_one_line_without_traceback(rooms, tmp_path, capsys, change, message):
    assert run(*command(rooms, tmp_path / "out"), "--counts", "2", *change) == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert last.startswith("noise2map: error:") and message in last and "Traceback" not in error


@pytest.mark.parametrize(
    "option, value",
    [
        ("--counts", "0"),
        ("--timesteps", "a"),
        ("--dataset", "video"),
        ("--missing", "near"),
        ("--steps", "0"),
        ("--max-depth", "-1"),
    ],
)
def test_values_out_of_range_are_refused_by_the_option(rooms, tmp_path, capsys, option, value):
    assert run(*command(rooms, tmp_path / "out"), option, value) == 2
    error = capsys.readouterr().err
    assert f"Invalid value for '{option}'" in error and "Traceback" not in error


def test_the_spelling_of_earlier_releases(rooms, tmp_path):
    words = ["--model" if word == "--generator" else word for word in command(rooms, tmp_path / "new")]
    assert "--model" in words
    old = ["--generator" if word == "--model" else word for word in words]
    assert run(*old, "--counts", 1, "--bf16", "--no-by-block", "--steps", 1) == 0
    scores = json.loads((tmp_path / "new" / "final" / "scores.json").read_text())
    assert scores["plan"]["bf16"] and scores["plan"]["counts"] == [1]


def test_an_output_folder_of_something_else_or_in_use_is_refused(rooms, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "accuracy.csv").write_text("of the user")
    assert run(*command(rooms, tmp_path / "mine")) == 2
    assert "no depth predictor of this command" in capsys.readouterr().err
    assert (tmp_path / "mine" / "accuracy.csv").read_text() == "of the user"
    with locked(tmp_path / "used"):
        assert run(*command(rooms, tmp_path / "used")) == 2
    assert "another process" in capsys.readouterr().err


def test_a_folder_of_splits_is_read_split_by_split(rooms, tmp_path):
    """With one folder for both, predictors learnt from the held-out part, which the folder is scored on by default."""
    found = []
    for name, roots in (("apart", (rooms / "train", rooms / "val")), ("together", (rooms, rooms))):
        words = [str(one) for one in command(rooms, tmp_path / name)]
        words[words.index("--root") + 1], words[words.index("--val-root") + 1] = map(str, roots)
        assert run(*words, "--counts", "5") == 0
        found.append([(row["images"], row["l1"], row["abs_rel"]) for row in read_csv(tmp_path / name / "accuracy.csv")])
    assert found[0] == found[1]


def test_equal_branches_are_refused_before_images_are_labelled(rooms, tmp_path, capsys, monkeypatch):
    def read(*args, **keywords):
        raise AssertionError("images were read")

    monkeypatch.setattr("noise2map.generation.predictor_training.read_images", read)
    assert run(*command(rooms, tmp_path / "out"), "--counts", "2", "--strong", "4", "--weak", "4") == 2
    assert "strong_blocks and weak_blocks are both [4]; expected different ones" in capsys.readouterr().err
