"""Mutation testing on a sample: one expression of the mathematics is changed, and some test has to fail.

cosmic-ray makes the mutants (its operators on numbers, signs, comparisons, logic, loops); this script draws places by seed, runs
for each mutant the fast tests that have to do with its file until one fails, and lists who survived.

    make mutants                                        # 100 mutants by seed 0 -> results/mutants.csv
    python benchmarks/mutants.py --count 20 --seed 3 --out out/mutants.csv
    python benchmarks/mutants.py --again results/mutants.csv    # only those that survived, or were not run yet

Everything happens in copies; the checkout is not touched. Half an hour to an hour on two cores.
"""

import argparse
import ast
import csv
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
PACKAGE = Path("src/noise2map")
SUBJECTS = ("diffusion", "codecs", "guidance", "metrics", "tasks")
SUBJECTS += ("models/map_model.py", "models/decoding.py", "models/aggregation.py")
OPERATORS = (
    "ReplaceBinaryOperator",
    "ReplaceComparisonOperator",
    "ReplaceUnaryOperator",
    "NumberReplacer",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "AddNot",
    "ZeroIterationForLoop",
    "ReplaceBreakWithContinue",
)
# Swaps that only raise TypeError or ruin a type union say nothing about tests.
UNLIKELY = ("Pow", "RShift", "LShift", "BitOr", "BitAnd", "BitXor", "Mod", "Is")
PASSED = (0, 5)  # exit codes of pytest: all passed, no test found
WHOLE = {"models": "models", "tasks": "evaluation"}  # rooms of tests that hardly name what they test
LIMIT_S = 600  # of the processor; a mutant may well run forever


@dataclass
class Mutant:
    """One changed line."""

    file: str
    line: int
    definition: str
    operator: str
    before: str
    after: str
    outcome: str = ""
    killer: str = ""
    tests: int = 0
    note: str = ""


def main() -> None:
    """Draws mutants, runs their tests, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", type=Path, help="a table; those of its mutants that were not killed are run again")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "mutants.csv")
    args = parser.parse_args()
    os.chdir(ROOT)
    seed = args.seed
    if args.again:
        with args.again.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        mutants = [Mutant(**{key: row[key] for key in Mutant.__dataclass_fields__}) for row in rows]
        args.out, seed = args.again, rows[0]["seed"]
    else:
        mutants = draw(args.count, seed)
    git = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
    command = shlex.join(["python", "benchmarks/mutants.py", *sys.argv[1:]])
    source = {"seed": seed, "commit": git.stdout.strip(), "command": command}

    def write() -> None:
        rows = [asdict(mutant) | source for mutant in mutants]
        with args.out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    run_all([mutant for mutant in mutants if mutant.outcome != "killed"], args.workers, write)
    write()
    survivors = [mutant for mutant in mutants if mutant.outcome == "survived"]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed; {args.out}")
    for mutant in survivors:
        print(f"{mutant.file}:{mutant.line} ({mutant.definition})\n  - {mutant.before}\n  + {mutant.after}  {mutant.note}")


# ---- mutants ---------------------------------------------------------------------------------------------------------------


def subjects() -> list[Path]:
    """The files to mutate, those that are there."""
    found = []
    for name in SUBJECTS:
        path = PACKAGE / name
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [path for path in found if path.name != "__init__.py"]


def draw(count: int, seed: int) -> list[Mutant]:
    """Places are drawn evenly over all files, then one operator for each."""
    places = defaultdict(list)
    for path in subjects():
        for place, operator, occurrence, definition in candidates(path):
            places[path, place].append((operator, occurrence, definition))
    rng = random.Random(seed)
    mutants: list[Mutant] = []
    for path, place in rng.sample(sorted(places), len(places)):
        operator, occurrence, definition = rng.choice(sorted(places[path, place]))
        mutant = make(path, operator, occurrence, definition)
        if mutant is not None:
            mutants.append(mutant)
        if len(mutants) == count:
            break
    print(f"{len(mutants)} mutants of {len(places)} places in {len(subjects())} files, seed {seed}")
    return mutants


def candidates(path: Path) -> list[tuple]:
    """``(place, operator, occurrence, definition)`` of what cosmic-ray would change in a file, as far as it can matter."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.ast.ast_query import ASTQuery
    from cosmic_ray.plugins import get_operator, operator_names

    tree, skipped, found = get_ast_from_path(path), indifferent(path.read_text(encoding="utf-8")), []
    for name in sorted(operator_names()):
        short = name.split("/")[-1]
        if not short.startswith(OPERATORS) or any(word in short.split("_") for word in UNLIKELY):
            continue
        operator = get_operator(name)()
        positions = [(node, spot) for node in ast_nodes(tree) for spot in operator.mutation_positions(node)]
        for occurrence, (node, (start, end)) in enumerate(positions):
            if not any(first <= start and end <= last for first, last in skipped):
                found.append(((start, end), name, occurrence, ASTQuery(node).get_definition_name() or ""))
    return found


def indifferent(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans whose change no test can or should see: annotations, messages of errors, docstrings, decorators."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None), *getattr(node, "decorator_list", [])]
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            parts.append(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("warn", "warning", "info"):
            parts.append(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "TypeVar", "field"):
            parts.append(node)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr):
            parts.append(node)
        spans += [((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)) for part in parts if part is not None]
    return spans


def make(path: Path, operator: str, occurrence: int, definition: str) -> Mutant | None:
    """The mutant as a changed line; None if nothing or more than a line changes."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = path.read_text(encoding="utf-8")
    mutated = mutate_code(source, get_operator(operator)(), occurrence)
    if mutated is None:
        return None
    old, new = source.splitlines(), mutated.splitlines()
    changed = [index for index, (a, b) in enumerate(zip(old, new)) if a != b]
    if len(changed) != 1 or len(old) != len(new):
        return None
    line = changed[0]
    return Mutant(str(path), line + 1, definition, operator.split("/")[-1], old[line].strip(), new[line].strip())


def mutated_source(mutant: Mutant) -> str:
    """The file with the mutant in it, at the recorded line or the nearest one that reads alike.

    Raises:
        ValueError: If the line is no longer there.
    """
    lines = Path(mutant.file).read_text(encoding="utf-8").splitlines(keepends=True)
    spots = [index for index, line in enumerate(lines) if line.strip() == mutant.before]
    if not spots:
        raise ValueError(f"{mutant.file} no longer has the line {mutant.before!r}")
    spot = min(spots, key=lambda index: abs(index + 1 - int(mutant.line)))
    lines[spot] = lines[spot].replace(mutant.before, mutant.after)
    return "".join(lines)


# ---- tests -----------------------------------------------------------------------------------------------------------------


@cache
def names_in(path: Path) -> frozenset[str]:
    """All identifiers of a file."""
    return frozenset(re.findall(r"[A-Za-z_]\w+", path.read_text(encoding="utf-8")))


@cache
def defined_in(file: Path) -> frozenset[str]:
    """Functions and classes of a module."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef))


@cache
def tests_of(file: str) -> list[str]:
    """The test files for a module, the nearest first: of its name, of its room, and those that use what it defines.

    What a neighbour in the room makes of the module counts, too: histograms are tested as the scores that they give.
    """
    path = Path(file).relative_to(PACKAGE)
    own, module = defined_in(Path(file)), ".".join(["noise2map", *path.with_suffix("").parts])
    importers = [one for one in Path(file).parent.glob("*.py") if module in one.read_text(encoding="utf-8")]
    made = frozenset().union(*(defined_in(one) for one in importers if one.name != "__init__.py"))
    rooms = {"tasks": ("tasks", "evaluation", "inference")}.get(path.parts[0], (path.parts[0],))
    ranked = []
    for test in sorted(Path("tests").glob("*/**/test_*.py")):
        uses, nearby, near = len(own & names_in(test)), len(made & names_in(test)), test.parts[1] in rooms
        named = path.stem in test.stem
        if (near and (named or uses or nearby)) or uses >= 2 or test.parts[1] == WHOLE.get(path.parts[0]):
            ranked.append((not named, not near, "golden" in test.stem, -uses, -nearby, str(test)))
    return [rank[-1] for rank in sorted(ranked)]


def run_all(mutants: list[Mutant], workers: int, write: Callable[[], None]) -> None:
    """Fills in the outcomes; every worker has its own copy of the checkout.

    ``write`` is called after each. A test that fails only counts if it passes without the mutant: each such test is run once on
    the unchanged sources.
    """
    preload()
    passes: dict[str, bool] = {}  # what tests that killed a mutant do without one
    with tempfile.TemporaryDirectory() as folder:
        trees = [copy_tree(Path(folder) / str(worker)) for worker in range(workers)]
        running: dict[int, tuple[Path, Mutant, str]] = {}
        waiting = [(mutant, "") for mutant in reversed(mutants)]
        bar = tqdm(total=len(mutants), unit="mutant")
        while waiting or running:
            while waiting and trees:
                tree, (mutant, check) = trees.pop(), waiting.pop()
                tests = [check] if check else tests_of(mutant.file)
                if not check:
                    mutant.tests = len(tests)
                    (tree / mutant.file).write_text(mutated_source(mutant), encoding="utf-8")
                skipped = [] if check else [test for test, passed in passes.items() if not passed]
                running[start(tree, tests, skipped)] = tree, mutant, check
            pid, status = os.waitpid(-1, 0)
            tree, mutant, check = running.pop(pid)
            shutil.copy(mutant.file, tree / mutant.file)
            trees.append(tree)
            survived = os.waitstatus_to_exitcode(status) in PASSED
            if check:
                passes[check] = survived
                waiting += [] if survived else [(mutant, "")]
            else:
                failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", (tree / "log").read_text(errors="replace"), re.M)
                mutant.outcome = "survived" if survived else "killed"
                mutant.killer = "" if survived else failed[1] if failed else "time" if os.WIFSIGNALED(status) else "import"
                waiting += [(mutant, failed[1])] if failed and not survived and not passes.get(failed[1]) else []
            if not waiting or waiting[-1][0] is not mutant:
                bar.update()
                write()
        bar.close()


def preload() -> None:
    """What every test process needs, imported once: processes are forked. Not noise2map, whose copies are tested."""
    import accelerate
    import diffusers
    import numpy
    import PIL.Image
    import pytest
    import torch
    import torchmetrics
    import transformers

    torch.set_num_threads(1)
    assert all((accelerate, diffusers, numpy, PIL, pytest, torchmetrics, transformers))


def copy_tree(target: Path) -> Path:
    """The checkout's files without what git ignores."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if Path(name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target / name)
    return target


def start(tree: Path, tests: list[str], skipped: list[str]) -> int:
    """Forks a process that runs the fast ones of these tests until one fails; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 5))
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        log = os.open(tree / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(tree)
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(tree / "src"))
        os.environ |= {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        import pytest

        words = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-m"]
        deselected = [f"--deselect={test}" for test in skipped]
        code = pytest.main([*words, "not slow", *deselected, *(test for test in tests if test not in skipped)])
    finally:
        sys.stdout.flush()
        os._exit(int(code))


if __name__ == "__main__":
    main()
