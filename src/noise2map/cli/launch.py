"""The process of a command: its threads, its memory, and what it prints."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

# Rounds of a waiting OpenMP thread (GNU's) before it sleeps: a few microseconds, instead of GNU's 300,000 rounds. Alone on two
# cores a run takes 3 % longer for it; beside two other processes it took a sixth of the time.
_SPINS = "1000"


def share_processor() -> None:
    """Let idle OpenMP threads sleep soon instead of spinning: on a busy machine at once, else after a few microseconds.

    A thread that spins at a barrier for a partner that is not running takes the core the partner waits for: with more
    load than cores a decoder step was measured to take four to eight times longer. The load may also come later. What the
    environment says stays. Must be called before torch is imported.
    """
    if "torch" in sys.modules or os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        return
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.75 * (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def leave_process_group() -> bool:
    """End the process group of ``accelerate launch`` or ``torchrun``, if there is one.

    A process that exits within it now and then aborts after its work is done: threads of the group still run.

    Returns:
        Whether there was a group and a launcher made this process: `end_process` is the safe way out then.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    distributed.destroy_process_group()
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_process(code: int) -> NoReturn:
    """End a launched process: what Python is to run at its exit runs, but the interpreter is not torn down.

    Whoever still holds the group, such as the wrapper of a trained model, keeps its threads alive, and one that lets go of a tensor
    while the interpreter is torn down aborts the process (pytorch/pytorch#179291): its launcher then calls finished work failed.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def hide_progress_of_files() -> None:
    """No bars of loading and writing weights between those of the work itself."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if "diffusers" in sys.modules:
        sys.modules["diffusers"].utils.logging.disable_progress_bar()


@contextmanager
def explain_lack_of_memory(remedy: str) -> Iterator[None]:
    """Says in one line that memory was not enough for the work inside, and what helps.

    Args:
        remedy: What the user can do.

    Raises:
        MemoryError: In place of PyTorch's error.
    """
    try:
        yield
    except RuntimeError as error:
        from noise2map.runs.memory import is_lack_of_memory

        if not is_lack_of_memory(error):
            raise
        raise MemoryError(f"out of memory; {remedy}") from error


def report_into(out: Path, settings: Mapping[str, Any], run: Callable[[], Any], *, overwrite: bool) -> None:
    """Runs what gives a report with ``text()`` and ``write(folder)``, prints it, and writes it into the folder.

    Args:
        out: The folder; one of other settings or with foreign files is refused before anything runs.
        settings: What decides the results.
        run: Gives the report.
        overwrite: Replace results of other settings.
    """
    from noise2map.runs.output_folder import claim

    with claim(out, settings, overwrite=overwrite):
        report = run()
        print("\n\n".join(report.text()))
        for path in report.write(out):
            print(f"wrote {path}", file=sys.stderr)
