import pytest
import torch

from noise2map.bench.guidance import STAGES, lsun_unet
from noise2map.cli import main
from noise2map.convert.adm_flags import adm_architecture
from noise2map.report.tables import read_csv


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "guidance", *map(str, arguments)])
    return exit_.value.code


def test_table_of_a_tiny_unet(tmp_path, capsys):
    """Operations and kept memory are exact, and say what the scheme saves; times are only there."""
    out = tmp_path / "bench.csv"
    tiny = ["--channels", 32, "--size", 32, "--prior-size", 32, "--rounds", 1, "--threads", 1, "--out", out]
    assert run(*tiny) == 0
    assert "x unguided" in capsys.readouterr().out
    rows = {row["stage"]: row for row in read_csv(out)}
    assert tuple(rows) == STAGES and all(row["ms"] > 0 and row["commit"] != "" for row in rows.values())
    assert rows["unguided"]["over_unguided"] == 1 and rows["unguided"]["kept_mb"] == 0
    work = {stage: row["gflop_over_unguided"] for stage, row in rows.items()}
    assert 1 < work["depth read"] < work["consistency"] < work["both"] < work["both, all gradients"] < 3
    assert work["from the output, all gradients"] == pytest.approx(3, abs=0.01)
    kept = {stage: row["kept_mb"] for stage, row in rows.items()}
    assert kept["consistency"] < kept["both"] < kept["both, all gradients"]
    assert run(*tiny, "--checkpointing") == 0
    assert len(read_csv(out)) == 2 * len(STAGES)
    checkpointed = {row["stage"]: row for row in read_csv(out) if row["checkpointing"] == "True"}
    assert checkpointed["consistency"]["kept_mb"] < kept["consistency"]


def test_table_of_a_shipped_generator(tmp_path):
    """Its own U-Net, predictor and prior: the unguided step costs what that U-Net does."""
    from diffusers import UNet2DModel

    from noise2map.runs.operations import count_operations
    from noise2map.zoo import zoo_path

    out = tmp_path / "bench.csv"
    assert run("--model", "freedoom-generator-64", "--batch-size", 2, "--rounds", 1, "--threads", 1, "--out", out) == 0
    rows = {row["stage"]: row for row in read_csv(out)}
    assert tuple(rows) == STAGES and {row["unet"] for row in rows.values()} == {"freedoom-generator-64"}
    unet = UNet2DModel.from_pretrained(zoo_path("freedoom-generator-64") / "unet")
    with torch.no_grad():
        alone = count_operations(lambda: unet(torch.zeros(2, 3, 64, 64), 400))
    assert rows["unguided"]["gflop"] == pytest.approx(alone / 1e9, rel=1e-3)
    assert rows["consistency"]["gflop_over_unguided"] < rows["both"]["gflop_over_unguided"]


def test_a_generator_without_a_prior_is_refused(tmp_path, capsys):
    from noise2map.guidance import DepthGuidedPipeline
    from noise2map.zoo import zoo_path

    pipe = DepthGuidedPipeline.from_pretrained(zoo_path("freedoom-generator-64"))
    DepthGuidedPipeline(pipe.unet, pipe.scheduler, pipe.depth_predictor).save_pretrained(tmp_path / "bare")
    assert run("--model", tmp_path / "bare", "--out", tmp_path / "bench.csv") == 2
    assert "no depth prior" in capsys.readouterr().err and not (tmp_path / "bench.csv").exists()


def test_unet_has_the_proportions_of_the_published_one():
    from noise2map.convert import LSUN_256_FLAGS

    published = UNetShape(**adm_architecture(LSUN_256_FLAGS).unet_config())
    small = UNetShape(**lsun_unet(64, 128).config)
    assert [4 * width for width in small.block_out_channels] == list(published.block_out_channels)
    for name in ("layers_per_block", "down_block_types", "up_block_types", "resnet_time_scale_shift", "out_channels"):
        assert getattr(small, name) == getattr(published, name)


class UNetShape:
    def __init__(self, **config):
        self.__dict__.update({key: tuple(value) if isinstance(value, list) else value for key, value in config.items()})


@pytest.mark.parametrize(
    "change, message",
    [
        (["--size", "40"], "multiple of 32"),
        (["--rounds", "0"], "'--rounds'"),
        (["--clock", "sun"], "'wall', 'cpu'"),
        (["--dtype", "int8"], "dtype"),
    ],
)
def test_mistakes(tmp_path, capsys, change, message):
    assert run("--out", tmp_path / "bench.csv", *change) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert torch.is_grad_enabled()
