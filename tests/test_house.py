"""The plan of the house: who may import whom, sizes, names, documentation, and what never happens here."""

import ast
import collections
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import noise2map

PACKAGE = Path(noise2map.__file__).parent
ROOT = PACKAGE.parents[1]
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)

# Room -> (rooms it imports, packages it imports beside the standard library). An arrow that nobody uses any more leaves the plan.
ROOMS = {
    "runs": (
        set(),
        {"PIL", "numpy", "torch", "tqdm", "transformers"},
    ),
    "diffusion": (
        set(),
        {"torch"},
    ),
    "codecs": (
        set(),
        {"torch"},
    ),
    "zoo": (
        set(),
        set(),
    ),  # package data and a loader of names
    "hub": (
        {"zoo"},
        {"huggingface_hub", "safetensors", "yaml"},
    ),
    "geometry": (
        {"runs"},
        {"torch"},
    ),
    "metrics": (
        {"lazy"},
        {"scipy", "torch", "torchmetrics"},
    ),
    "data": (
        {"runs"},
        {"PIL", "cv2", "h5py", "lmdb", "numpy", "pillow_heif", "scipy", "shapely", "tqdm"},
    ),
    "report": (
        {"runs"},
        {"PIL", "matplotlib", "numpy"},
    ),
    "registration": (
        set(),
        set(),
    ),
    "lazy": (
        set(),
        set(),
    ),
    "models": (
        {"hub", "zoo", "codecs", "diffusion", "runs"},
        {"PIL", "huggingface_hub", "numpy", "torch", "transformers"},
    ),
    "guidance": (
        {"codecs", "diffusion"},
        {"PIL", "diffusers", "huggingface_hub", "numpy", "torch"},
    ),
    "rendering": (
        {"data", "runs"},
        {"PIL", "numpy", "shapely", "tqdm"},
    ),
    "convert": (
        {"models", "data", "runs"},
        {"diffusers", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"},
    ),
    "tasks": (
        {"models", "report", "data", "metrics", "codecs", "runs"},
        {"PIL", "accelerate", "numpy", "torch", "torchmetrics"},
    ),
    "training": (
        {"hub", "tasks", "guidance", "models", "report", "data", "metrics", "lazy", "zoo", "diffusion", "runs"},
        {"PIL", "diffusers", "numpy", "safetensors", "torch", "tqdm", "transformers", "yaml"},
    ),
    "export": (
        {"tasks", "models", "zoo", "diffusion", "runs"},
        {"PIL", "numpy", "onnx", "onnxruntime", "onnxscript", "torch", "transformers"},
    ),
    "inference": (
        {"export", "tasks", "models", "report", "data", "metrics", "lazy", "zoo", "diffusion", "runs"},
        {"PIL", "accelerate", "fsspec", "numpy", "psutil", "pyarrow", "safetensors", "torch", "tqdm", "transformers"},
    ),
    "cluster": (
        {"inference"},
        {"pyarrow", "ray", "torch", "transformers"},
    ),
    "video": (
        {"inference", "tasks", "models", "report", "diffusion", "runs"},
        {"PIL", "av", "numpy", "torch", "tqdm"},
    ),
    "evaluation": (
        {"hub", "inference", "tasks", "models", "report", "data", "metrics", "diffusion", "runs"},
        {"PIL", "numpy", "torch", "tqdm"},
    ),
    "calibration": (
        {"evaluation", "inference", "tasks", "models", "report", "data", "zoo", "runs"},
        {"numpy", "torch", "tqdm"},
    ),
    "audit": (
        {"evaluation", "inference", "tasks", "models", "report", "data", "runs"},
        {"PIL", "numpy", "torch", "tqdm"},
    ),
    "generation": (
        {
            "inference",
            "training",
            "tasks",
            "guidance",
            "models",
            "report",
            "data",
            "metrics",
            "geometry",
            "zoo",
            "diffusion",
            "runs",
        },
        {"PIL", "diffusers", "numpy", "safetensors", "torch", "torchmetrics", "tqdm", "transformers"},
    ),
    "ablation": (
        {"evaluation", "inference", "training", "tasks", "models", "report", "data", "metrics", "zoo", "runs"},
        {"PIL", "matplotlib", "numpy", "safetensors", "torch"},
    ),
    "bench": (
        {"inference", "zoo", "tasks", "training", "convert", "guidance", "models", "report", "diffusion", "runs"},
        {"diffusers", "torch", "tqdm"},
    ),
}
ANYTHING = ("cli", "demo", "app", "__init__", "__main__")
# Extras, and what is slow to import, imported where they are used.
OPTIONAL = {
    "vizdoom",
    "shapely",
    "h5py",
    "lmdb",
    "scipy",
    "spconv",
    "gradio",
    "psutil",
    "cv2",
    "pillow_heif",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "av",
    "pyarrow",
    "ray",
}
NEVER = {"torchvision", "timm", "mmcv", "mmseg", "mmengine", "kornia", "pickle", "dill", "joblib"}
CORE = {
    "torch", "transformers", "diffusers", "accelerate", "safetensors", "torchmetrics", "numpy", "pillow", "typer", "tqdm", "pyyaml",
    "matplotlib", "psutil", "fsspec",
}  # fmt: skip

PUBLIC = {
    "noise2map": [
        "Noise2MapConfig",
        "Noise2MapForSemanticSegmentation",
        "Noise2MapForDepthEstimation",
        "Noise2MapForNormalEstimation",
        "Noise2MapImageProcessor",
        "MapTrainer",
    ],
    "noise2map.diffusion": ["CosineSchedule", "LinearSchedule", "time_pairs", "ddim_steps", "ddpm_steps", "image_generator"],
    "noise2map.codecs": ["OneHotCodec", "AnalogBitsCodec", "ClassEmbeddingCodec", "DepthCodec", "MultiLabelCodec"],
    "noise2map.convert": ["load_official_ddp"],
    "noise2map.metrics": [],
    "noise2map.geometry": [],
}

MAX_FILE, MAX_FUNCTION, MAX_MEDIAN, MAX_ROOM = 400, 80, 150, 16
MEBI = 1024**2


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def relative(path):
    return str(path.relative_to(PACKAGE))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def inside(path, kinds, condition=lambda node: True):
    """Ids of all nodes within nodes of some kinds."""
    outer = [node for node in ast.walk(tree_of(path)) if isinstance(node, kinds) and condition(node)]
    return {id(node) for start in outer for node in ast.walk(start)}


@functools.cache
def imports_of(path):
    """``(module, line, whether it is inside a function)`` of every import that happens when the code runs."""
    late = inside(path, (ast.FunctionDef, ast.AsyncFunctionDef))
    typing_only = inside(path, ast.If, lambda node: "TYPE_CHECKING" in ast.dump(node.test))
    found = []
    for node in ast.walk(tree_of(path)):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, id(node) in late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
            if node.module == "noise2map":  # "from noise2map import data" imports the room
                names = [f"noise2map.{alias.name}" for alias in node.names]
            found += [(name, node.lineno, id(node) in late) for name in names]
    return found


def complaints(check):
    """What a check yields over all source files, as one text."""
    return "\n".join(f"{relative(path)}:{line}: {message}" for path in SOURCES for line, message in check(path))


# ---- imports ---------------------------------------------------------------------------------------------------------------


def test_every_source_is_in_a_room_of_the_plan():
    assert {room_of(path) for path in SOURCES} <= {*ROOMS, *ANYTHING}


def test_imports_go_one_way():
    def check(path):
        room = room_of(path)
        rooms, packages = (None, None) if room in ANYTHING else ROOMS[room]
        for module, line, _ in imports_of(path):
            top, *rest = module.split(".")
            if module.startswith("."):
                yield line, f"relative import {module}"
            elif rooms is None:
                continue
            elif top == "noise2map":
                other = rest[0] if rest else "__version__"  # what a bare "import noise2map" is good for
                if other not in (room, "__version__") and other not in rooms:
                    yield line, f"{room} imports {other}"
            elif top not in sys.stdlib_module_names and top not in packages:
                yield line, f"{room} imports {top}"

    assert complaints(check) == ""


def test_optional_packages_are_imported_where_they_are_used():
    def check(path):
        for module, line, late in imports_of(path):
            top = module.split(".")[0]
            if top in NEVER:
                yield line, f"{module} is never imported"
            if top in OPTIONAL and not late:
                yield line, f"{module} is optional and imported at the top"

    assert complaints(check) == ""


@functools.cache
def module_of(path):
    """``noise2map.data.folder`` of a file; a package by its name."""
    return ".".join(["noise2map", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


@functools.cache
def file_arrows():
    """Module -> modules of the house that it imports, late imports included, imports for type checking aside."""
    modules = {module_of(path) for path in SOURCES}
    arrows = {module: set() for module in modules}
    for path in SOURCES:
        typing_only = inside(path, ast.If, lambda node: "TYPE_CHECKING" in ast.dump(node.test))
        for node in ast.walk(tree_of(path)):
            if id(node) in typing_only:
                continue
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [part if part in modules else node.module for part in parts]
            else:
                continue
            arrows[module_of(path)] |= {name for name in names if name in modules} - {module_of(path)}
    return arrows


def room_arrows():
    """Room -> rooms that its files import: the house as it is, not as it is planned."""
    room = {module_of(path): room_of(path) for path in SOURCES}
    arrows = {name: set() for name in room.values()}
    for module, others in file_arrows().items():
        arrows[room[module]] |= {room[other] for other in others} - {room[module], "__init__"}
    return arrows


def circles(arrows):
    """What is left of a graph after all nodes without open arrows have been taken away, again and again."""
    arrows = {node: set(others) for node, others in arrows.items()}
    while free := [node for node, others in arrows.items() if not others & set(arrows)]:
        for node in free:
            del arrows[node]
    return sorted(arrows)


def test_plan_and_code_agree():
    assert {room: room_arrows()[room] for room in ROOMS} == {room: rooms for room, (rooms, _) in ROOMS.items()}


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_no_circle_of_files():
    assert circles(file_arrows()) == []


def test_no_circle_of_rooms():
    assert circles(room_arrows()) == []


def test_only_commands_render():
    users = {room for room, others in room_arrows().items() if "rendering" in others}
    assert users <= {"cli"}


def test_importing_the_package_is_quick():
    code = "import sys, noise2map; print(sorted({'torch', 'transformers', 'numpy', 'diffusers', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_mathematics_needs_torch_alone():
    code = (
        "import sys, noise2map.diffusion, noise2map.codecs, noise2map.geometry\n"
        "print(sorted({'transformers', 'diffusers', 'torchmetrics', 'PIL', 'matplotlib', 'accelerate'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---- names -----------------------------------------------------------------------------------------------------------------


def test_no_room_for_odds_and_ends():
    bad = {"utils", "util", "misc", "common", "helpers", "helper"}
    names = {part.removesuffix(".py") for path in SOURCES for part in path.relative_to(PACKAGE).parts}
    assert not names & bad


def test_no_module_has_the_name_of_a_folder_beside_it():
    assert [relative(path) for path in SOURCES if path.with_suffix("").is_dir()] == []


def test_every_module_can_be_imported():
    names = {module.name for module in pkgutil.walk_packages([str(PACKAGE)], "noise2map.")}
    for name in names:
        importlib.import_module(name)
    assert names <= set(sys.modules) and len(names) >= len(SOURCES) - 1


def test_what_functions_import_is_there():
    """An import inside a function fails only when the function is called: a command that nobody has run."""

    def check(path):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "noise2map":
                room = importlib.import_module(node.module)
                for name in node.names:
                    module = hasattr(room, "__path__") and importlib.util.find_spec(f"{node.module}.{name.name}")
                    if not hasattr(room, name.name) and not module:
                        yield node.lineno, f"{node.module} has no {name.name}"

    assert complaints(check) == ""


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    room = importlib.import_module(module)
    for name in [*PUBLIC[module], *getattr(room, "__all__", [])]:
        value = getattr(room, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{module}.{name} has no docstring"


def test_package_lists_its_names():
    assert set(noise2map.__all__) <= set(dir(noise2map))
    for name in dir(noise2map):
        getattr(noise2map, name)
    with pytest.raises(AttributeError, match="no attribute 'Noise2Map'"):
        _ = noise2map.Noise2Map


@pytest.mark.parametrize(
    "package", ["noise2map", "noise2map.training", "noise2map.metrics", "noise2map.metrics.samples", "noise2map.inference"]
)
def test_names_that_are_imported_late_are_those_of_the_table(package):
    room = importlib.import_module(package)
    for name, module in room._PUBLIC.items():
        assert getattr(room, name) is getattr(importlib.import_module(module), name)
    listed = dir(room)
    assert {*room.__all__, *room._PUBLIC} <= set(listed) and "TYPE_CHECKING" not in listed
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = room.nothing


def test_what_is_public_is_documented():
    def check(path):
        if not ast.get_docstring(tree_of(path)):
            yield 1, "module without a docstring"
        owners = [tree_of(path), *(node for node in tree_of(path).body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]
        for owner in owners:
            for node in owner.body:
                public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
                overload = public and any("setter" in ast.dump(d) or "overload" in ast.dump(d) for d in node.decorator_list)
                if public and not overload and not ast.get_docstring(node):
                    yield node.lineno, f"{node.name} without a docstring"

    assert complaints(check) == ""


TASK_NAMES = {"segmentation", "depth", "normals", "bev"}


def task_comparisons(path):
    """Lines where code finds out the task by itself: by a name, by the class of a model, by what a head or an output has."""
    for node in ast.walk(tree_of(path)):
        text = ast.unparse(node) if isinstance(node, (ast.Compare, ast.Call)) else ""
        if isinstance(node, ast.Compare):
            said = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
            if (said & TASK_NAMES and "task" in text) or ("__name__" in text and re.search("Segmentation|Estimation|Bev", text)):
                yield node.lineno, text
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if len(keys & TASK_NAMES) > 1 and ("segmentation" in keys or keys <= TASK_NAMES):
                yield node.lineno, f"mapping from {sorted(keys)}"
        elif isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            sniffed = function == "isinstance" and "Noise2MapFor" in text
            sniffed |= function == "hasattr" and bool(re.search("'(classifier|regressor|logits|predicted_depth)'", text))
            if sniffed or function.endswith("__name__.endswith"):
                yield node.lineno, text


def test_tasks_are_told_apart_in_their_room():
    """A new task must not have to be added to a comparison here and there: `noise2map.tasks` has one object for each."""
    outside = [path for path in SOURCES if room_of(path) != "tasks"]
    found = [f"{relative(path)}:{line}: {text}" for path in outside for line, text in task_comparisons(path)]
    assert len(found) < 15, "\n".join(found)


def test_comparisons_of_tasks_are_found():
    code = """if recipe.model.task == "bev" or task not in ("segmentation", "depth"): pass
kinds = {"segmentation": 1, "depth": 2}
if isinstance(model, Noise2MapForDepthEstimation) or hasattr(head, "classifier"): pass
if type(model).__name__.endswith("DepthEstimation"): pass
if part == "depth" or kind == "normals": pass
"""
    tree = ast.parse(code)
    path = Path("imagined.py")
    original, globals()["tree_of"] = tree_of, lambda _: tree
    try:
        assert sorted(line for line, _ in task_comparisons(path)) == [1, 1, 2, 3, 3, 4]
    finally:
        globals()["tree_of"] = original


# ---- sizes -----------------------------------------------------------------------------------------------------------------


def test_files_are_short():
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}
    assert statistics.median(lengths.values()) <= MAX_MEDIAN


def test_folders_are_small():
    sizes = collections.Counter(path.parent for path in SOURCES)
    assert {relative(folder): size for folder, size in sizes.items() if size > MAX_ROOM} == {}


def length_of(function):
    """Lines of a function: signature and docstring included, decorators not."""
    return function.end_lineno - function.lineno + 1


def test_functions_are_short():
    def check(path):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and length_of(node) > MAX_FUNCTION:
                yield node.lineno, f"{node.name} has {length_of(node)} lines"

    assert complaints(check) == ""


def test_signature_and_docstring_are_part_of_a_function():
    code = [
        "@decorated",
        "def one(",
        "    argument,",
        "):",
        '    """What it says,',
        "",
        "    at length.",
        '    """',
        "    return argument",
        "",
    ]
    assert length_of(ast.parse("\n".join(code)).body[0]) == 8


def test_budgets():
    package = sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert package < 48 * MEBI, f"the wheel would hold {package / MEBI:.1f} MiB"
    golden = sum(path.stat().st_size for path in (ROOT / "tests" / "golden").rglob("*") if path.is_file())
    assert golden < 6 * MEBI, f"tests/golden holds {golden / MEBI:.1f} MiB"


def test_installing_pulls_only_the_core():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.S | re.M).group(1)
    assert set(re.findall(r'"([a-zA-Z0-9_-]+)', block)) == CORE


# ---- what never happens ----------------------------------------------------------------------------------------------------


def test_weights_are_never_unpickled():
    def check(path):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.hub.load", "np.load", "numpy.load"):
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if ast.unparse(node.func) == "torch.load" and arguments.get("weights_only") != "True":
                    yield node.lineno, "torch.load without weights_only=True"
                if arguments.get("allow_pickle", "False") != "False":
                    yield node.lineno, "numpy.load with allow_pickle"
                if "hub" in ast.unparse(node.func):
                    yield node.lineno, "torch.hub.load runs foreign code"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "os.system"):
                yield node.lineno, ast.unparse(node.func)
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "shell") and ast.unparse(node.value) != "False":
                yield node.value.lineno, f"{node.arg}={ast.unparse(node.value)}"

    assert complaints(check) == ""


def test_nothing_is_left_undone():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError\(\)")

    def check(path):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if marks.search(line):
                yield number, line.strip()

    assert complaints(check) == ""


OTHER_WORDS = re.compile(r"colour|picture|\bdata sets?\b", re.I)  # the project says color, image, dataset
OTHER_WORDS_ALLOWED = re.compile(r"\bColourAugmentation\b|</?picture>")  # a former name, and HTML


def test_one_word_for_one_thing():
    def check(path):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if OTHER_WORDS.search(OTHER_WORDS_ALLOWED.sub("", line)):
                yield number, line.strip()

    assert OTHER_WORDS.search("a Colour of the data set") and not OTHER_WORDS.search(OTHER_WORDS_ALLOWED.sub("", "<picture>"))
    assert complaints(check) == ""


def test_modules_that_tests_and_benchmarks_name_are_there():
    """Also in scripts that tests hand to another process as text, where no checker looks."""
    missing = []
    for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for module in re.findall(r"^\s*from (noise2map[\w.]*) import", path.read_text(encoding="utf-8"), re.M):
            place = PACKAGE.parent / module.replace(".", "/")
            if not (place.is_dir() or place.with_suffix(".py").is_file()):
                missing.append(f"{path.relative_to(ROOT)}: {module}")
    assert not missing, missing
