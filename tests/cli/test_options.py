"""The options that commands share: what they take, what they refuse, and what shows in --help."""

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from noise2map.cli import commands, options

SEEN = {}


def command(
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    steps: options.Steps = None,
    steps_list: options.StepsList = None,
    size: options.Size = None,
    window: Annotated[options.ImageSize, options.size("Windows.", multiple=32, least=64)] = "128x64",
    counts: Annotated[list[str] | None, options.numbers("Counts.", least=2)] = None,
    scales: Annotated[list[str] | None, options.scales("Scales.")] = None,
    average: Annotated[list[str] | None, options.words("Averages.", ("last", "steps"))] = None,
    sampler: options.ImageSampler = "default",
    depth_prior: options.DepthPrior = None,
    fov: options.Fov = None,
    limit: options.Limit = 0,
    batch_size: options.BatchSize = 8,
    seed: options.Seed = 0,
):
    """A command."""
    SEEN.clear()
    SEEN.update(locals())


def run(*words):
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(cls=options.Command)(command)
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "140"})


def test_defaults():
    assert run().exit_code == 0
    assert SEEN["window"] == (128, 64) and isinstance(SEEN["window"], options.ImageSize)
    assert SEEN["steps"] is SEEN["steps_list"] is SEEN["size"] is SEEN["counts"] is SEEN["average"] is None


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--device", "cuda:1"], "device", "cuda:1"),
        (["--steps", "3"], "steps", 3),
        (["--steps", "auto"], "steps", "auto"),
        (["--steps-list", "1", "3,auto", "1"], "steps_list", [1, 3, "auto"]),
        (["--steps-list=1", "10"], "steps_list", [1, 10]),
        (["--size", "640X480"], "size", (640, 480)),
        (["--size", "native"], "size", "native"),
        (["--window", "64x96"], "window", (64, 96)),
        (["--counts", "2,10", "5"], "counts", [2, 10, 5]),
        (["--scales", "0,2.5"], "scales", [0.0, 2.5]),
        (["--average", "steps", "last"], "average", ["steps", "last"]),
        (["--fov", "74"], "fov", 74.0),
        (["--seed", "-5"], "seed", -5),
        (["--seed", "1" * 23], "seed", int("1" * 23)),
    ],
)
def test_values(words, name, value):
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert SEEN[name] == value and type(SEEN[name]) in (type(value), options.ImageSize)


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "gpu"],
        ["--device", "cuda:x"],
        ["--dtype", "float64"],
        ["--steps", "0"],
        ["--steps", "1000000"],
        ["--steps", "some"],
        ["--steps", "1.5"],
        ["--steps", "AUTO"],
        ["--steps", "²"],
        ["--steps-list", "1,some"],
        ["--steps-list", ","],
        ["--size", "640"],
        ["--size", "640x"],
        ["--size", "0x480"],
        ["--window", "64x65"],
        ["--window", "32x64"],
        ["--counts", "1"],
        ["--scales", "-1"],
        ["--scales", "inf"],
        ["--average", "mean"],
        ["--sampler", "euler"],
        ["--fov", "180"],
        ["--fov", "nan"],
        ["--limit", "-1"],
        ["--batch-size", "0"],
        ["--batch-size", "1.5"],
    ],
)
def test_what_is_out_of_range_is_refused_with_the_name_of_the_option(words):
    done = run(*words)
    assert done.exit_code == 2
    assert f"Invalid value for '{words[0]}'" in done.output


def test_ranges_and_choices_show_in_the_help():
    text = run("--help").output
    for shown in (
        "float32|bfloat16|float16",
        "x>=1",
        "WIDTHxHEIGHT",
        "N|auto",
        "ddim|ddpm|default",
        "last|steps",
        "cuda[:N]",
        "128x64",
    ):
        assert shown in text
    assert "bf16" not in text and "scheduler" not in text


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--bf16"], "dtype", "bfloat16"),
        (["--scheduler", "ddpm"], "sampler", "ddpm"),
        (["--scheduler=ddpm"], "sampler", "ddpm"),
        (["--sampler", "own"], "sampler", "default"),
        (["--scheduler", "own"], "sampler", "default"),
        (["--sampler=own"], "sampler", "default"),
        (["--prior", "own"], "depth_prior", "own"),
    ],
)
def test_spellings_of_earlier_releases(words, name, value):
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert SEEN[name] == value


def test_an_option_that_a_command_still_has_is_not_respelt():
    assert commands.modern_spelling(["--generator", "x"], {"--generator", "--model"}) == ["--generator", "x"]
    assert commands.modern_spelling(["--bf16"], {"--out"}) == ["--bf16"]
    assert commands.modern_spelling(["--data", "lsun"], {"--dataset"}) == ["--dataset", "lsun"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--steps 1 3 10 --seed 4", "--steps 1 --steps 3 --steps 10 --seed 4"),
        ("--steps=1 3,auto --model m", "--steps=1 --steps 3,auto --model m"),
        ("--steps 1 --ensemble 2 4 --steps 3", "--steps 1 --ensemble 2 --ensemble 4 --steps 3"),
        ("--model m stray", "--model m stray"),
        ("--steps -1", "--steps -1"),
    ],
)
def test_values_after_an_option_that_takes_several(words, expected):
    assert commands.repeat_options(words.split(), ["--steps", "--ensemble"]) == expected.split()
