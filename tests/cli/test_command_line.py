"""The command line as a whole: help without imports, one line for a user's error."""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import typer
from torch.utils.data import DataLoader, Dataset

from noise2map import __version__, cli
from noise2map.cli import launch
from noise2map.zoo import shipped_models


def run(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_help_lists_every_command_without_importing_one():
    program = (
        "import sys; from noise2map.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = [n for n in sys.modules if n.split('.')[0] in ('torch', 'transformers', 'numpy', 'matplotlib', 'PIL')"
        " or n.startswith('noise2map.cli.') and n != 'noise2map.cli.launch']\n"
        "print('imported', heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "imported []" in done.stdout
    for name, (_, _, text) in cli._COMMANDS.items():
        assert f"  {name} " in done.stdout and text.split(":")[0] in " ".join(done.stdout.split())  # long lines are broken


@pytest.mark.parametrize("name", ["predict", "demo"])
def test_help_of_a_command_is_quick(name):
    program = (
        "import sys; from noise2map.cli import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False") and "--seed" in done.stdout


def test_version(capsys):
    code, out, _ = run(["--version"], capsys)
    assert code == 0 and out.strip() == f"noise2map {__version__}"


def test_a_misspelt_command_is_guessed(capsys):
    code, _, err = run(["predct"], capsys)
    assert code == 2 and "Did you mean" in err and "'predict'" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("steps is\n  wrong"), "steps is wrong"),
        (OSError(28, "No space left on device", "/data/a.png"), "/data/a.png: No space left on device"),
        (ImportError('pip install "noise2map[render]"'), 'pip install "noise2map[render]"'),
        (MemoryError(), "MemoryError"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, line):
    def fail(**_):
        raise error

    monkeypatch.setattr(cli, "app", fail)
    code, out, err = run([], capsys)
    assert code == 2 and out == "" and err == f"noise2map: error: {line}\n"


class Unreadable(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise ValueError("truncated: file")
        except ValueError as error:
            raise OSError("cannot read a.png: it is cut off") from error


def test_an_error_of_a_process_that_loads_data_comes_without_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", lambda **_: list(DataLoader(Unreadable(), num_workers=1)))
    code, _, err = run([], capsys)
    assert (code, err) == (2, "noise2map: error: cannot read a.png: it is cut off\n")


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def fail(**_):
        raise KeyError("bug")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(KeyError):
        cli.main([])


def test_the_traceback_can_be_asked_for(monkeypatch):
    def fail(**_):
        raise ValueError("x")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setenv("NOISE2MAP_TRACEBACK", "1")
    with pytest.raises(ValueError):
        cli.main([])


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (["predict", "photo.png", "--model", "x", "--out", "y"], True),
        (["evaluate", "--model", "x"], False),
        (["evaluate", "generator", "--model", "x", "--references", "samples", "--out", "y"], True),
        (["demo"], False),
        (["bench", "model"], False),
        (["data", "freedoom", "--out", "y"], True),
        (["data", "samples", "--out", "y"], False),
    ],
)
def test_an_interrupted_command_says_whether_it_goes_on(monkeypatch, capsys, tmp_path, words, goes_on):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(typer.core.TyperCommand, "invoke", interrupt)
    code, _, err = run(words, capsys)
    assert code == 130
    assert err.startswith("noise2map: interrupted; " + ("run the same command again to go on" if goes_on else "nothing was kept"))


def test_python_m_runs_the_command_line():
    done = subprocess.run([sys.executable, "-m", "noise2map", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"noise2map {__version__}"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("noise2map pre", {"predict", "predict-bev"}),
        ("noise2map data fre", {"freedoom", "freedoom-surround"}),
        ("noise2map bench model --cl", {"--clock"}),
        ("noise2map bench model --clock ", {"wall", "cpu"}),
    ],
)
def test_the_shell_completes_commands_options_and_choices(line, offered):
    environment = {**os.environ, "_NOISE2MAP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    code = "from noise2map.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert set(done.stdout.split()) == offered, done.stderr


def test_the_script_of_completion_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code, out, _ = run(["--show-completion", "bash"], capsys)
    assert code == 0 and "_NOISE2MAP_COMPLETE=complete_bash" in out


def test_summaries_of_subcommands_are_not_cut_off(capsys):
    _, out, _ = run(["data", "--help"], capsys)
    listed = out.split("Commands:")[1]
    assert "..." not in listed and "images, depth in centimetres, classes" in " ".join(listed.split())


def test_usage_of_train_names_no_hidden_command(capsys):
    _, out, _ = run(["train", "--help"], capsys)
    assert out.startswith("Usage: noise2map train [OPTIONS]")


def test_shipped_models_are_listed_with_score_limit_and_card(capsys):
    code, out, _ = run(["models"], capsys)
    assert code == 0
    for one in shipped_models():
        assert one.name in out and one.score in out and one.limit in out and str(one.card) in out


@pytest.mark.parametrize(
    ("load", "said", "expected"),
    [
        (3.0, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (1.0, {}, {"GOMP_SPINCOUNT": "1000"}),  # one other process: it must not wait for threads that spin
        (3.0, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (3.0, {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_threads_that_wait_sleep_soon(monkeypatch, load, said, expected):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, said.get(name, ""))  # so that it is restored
        if name not in said:
            monkeypatch.delenv(name)
    launch.share_processor()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
@pytest.mark.parametrize(("word", "keeps"), [("predict", True), ("convert", False)])  # converting runs no model
def test_a_command_that_runs_a_model_keeps_freed_memory(monkeypatch, word, keeps):
    calls = []
    monkeypatch.setattr(sys, "argv", ["/usr/bin/noise2map", word])
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(word))
    monkeypatch.setattr(cli, "app", lambda **_: None)
    cli.main()
    assert calls == [word] * keeps


@pytest.mark.parametrize("error", [None, ValueError("the loss is not finite")])
def test_a_command_leaves_its_process_group(monkeypatch, tmp_path, error):
    """A process that ends within a group may abort ("terminate called without an active exception") with all its work done."""
    torch = pytest.importorskip("torch")

    def command(**_):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
        if error:
            raise error

    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(SystemExit) if error else nullcontext():
        cli.main(["train"])
    assert not torch.distributed.is_initialized()


LAUNCHED = """
import atexit, os, sys
import torch
from noise2map import cli

class Held:
    def __del__(self, write=os.write):
        write(1, b"torn down")

def command(**_):
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    raise SystemExit(int(sys.argv[2])) if sys.argv[2] else ValueError("bad")

held, cli.app = Held(), command
atexit.register(print, "at exit")
cli.main(["train"])
"""


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("1", 1), ("", 2)])
@pytest.mark.parametrize("launcher", [True, False])
def test_a_launched_process_is_not_torn_down(launcher, code, expected, tmp_path):
    """Threads that still hold the group abort a process in its last moment, and the launcher calls its work failed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    environment |= {"TORCHELASTIC_RUN_ID": "1"} if launcher else {}
    words = [sys.executable, "-c", LAUNCHED, str(tmp_path / "group"), code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
    assert done.stdout == "at exit\n" + ("" if launcher else "torn down")
    assert ("error: bad" in done.stderr) == (code == "")


def test_stray_words_are_still_refused(capsys):
    code, _, err = run(["evaluate", "--model", "m", "stray", "--steps", "1", "3"], capsys)
    assert code == 2 and "stray" in err
