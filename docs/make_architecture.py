"""Draws docs/architecture.png from the code: which room imports which, and which the plan of tests/test_house.py allows.

python docs/make_architecture.py [--out docs/architecture.png]
"""

import argparse
import ast
import importlib.util
import itertools
import math
import random
from collections import Counter
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "noise2map"
JOBS = {
    "cli": "options of the commands",
    "app": "the models in a browser",
    "demo": "one HTML page",
    "bench": "time and memory",
    "generation": "draws and scores images",
    "audit": "finds label errors",
    "ablation": "compares decoders",
    "evaluation": "scores maps",
    "calibration": "corrects what is stated",
    "inference": "maps of images",
    "export": "graphs for other programs",
    "training": "trains all models",
    "tasks": "what a task is",
    "convert": "official checkpoints",
    "rendering": "makes Freedoom data",
    "models": "DDP",
    "guidance": "DAG",
    "report": "draws, tabulates",
    "data": "reads samples",
    "metrics": "scores",
    "geometry": "rays, points, normals",
    "runs": "what runs write",
    "diffusion": "mathematics",
    "codecs": "map <-> signal",
    "hub": "shares models",
    "video": "maps of clips",
    "cluster": "maps by many processes",
    "zoo": "shipped models",
    "registration": "names for transformers",
    "lazy": "names on first use",
}
GROUPS = {  # color of a box
    "#dfe7f5": {"cli", "app", "demo", "bench"},
    "#d9efe3": {
        *(
            "generation",
            "video",
            "cluster",
            "audit",
            "ablation",
            "evaluation",
            "calibration",
            "inference",
            "training",
            "convert",
            "rendering",
        ),
        "export",
    },
    "#fdebc8": {"tasks"},
    "#f7dcd7": {"models", "guidance"},
    "#ececec": {"report", "data", "metrics", "geometry", "runs", "diffusion", "codecs", "hub", "zoo", "registration", "lazy"},
}
FREE = ("cli", "app", "demo")  # import what they like; only their shortest arrows are drawn
INK, USED, ALLOWED = "#222222", "#3b6ea5", "#c9d6e8"


def room_of(path: Path) -> str:
    """``src/noise2map/models/bev/rig.py`` -> ``models``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def real_imports() -> tuple[dict[str, Counter], Counter]:
    """Import statements between rooms, and lines of each room. Those for the type checker alone do not count."""
    edges: dict[str, Counter] = {}
    lines: Counter = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if room.startswith("__"):
            continue
        text = path.read_text(encoding="utf-8")
        lines[room] += len(text.splitlines())
        found = edges.setdefault(room, Counter())
        tree = ast.parse(text)
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if id(node) in typing_only:
                continue
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "noise2map":
                names = [f"noise2map.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                parts = name.split(".")
                if parts[0] == "noise2map" and len(parts) > 1 and parts[1] in JOBS and parts[1] != room:
                    found[parts[1]] += 1
    return edges, lines


def planned_imports() -> dict[str, set[str]]:
    """What the house test allows."""
    spec = importlib.util.spec_from_file_location("test_house", ROOT / "tests" / "test_house.py")
    assert spec is not None and spec.loader is not None
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    everything = set(house.ROOMS) | set(house.ANYTHING)
    return {room: set(rooms) for room, (rooms, _) in house.ROOMS.items()} | {
        room: everything - {"cli"} for room in house.ANYTHING if room in JOBS
    }


def layers_of(edges: dict[str, Counter]) -> dict[str, int]:
    """The layer of each room: one above the highest that it imports.

    Raises:
        ValueError: If rooms import each other in a circle.
    """
    found: dict[str, int] = {}
    while len(found) < len(edges):
        free = [room for room in edges if room not in found and set(edges[room]) <= set(found)]
        if not free:
            raise ValueError(f"circle among {sorted(set(edges) - set(found))}")
        found |= {room: 1 + max((found[other] for other in edges[room]), default=-1) for room in free}
    return found


def reduced(edges: dict[str, Counter]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others."""

    def reach(room: str) -> set[str]:
        return set(edges[room]).union(*(reach(other) for other in edges[room]))

    return [(room, other) for room in edges for other in edges[room] if not any(other in reach(third) for third in edges[room])]


def arranged(layer: dict[str, int], arrows: list[tuple[str, str]]) -> dict[str, int]:
    """Places of rooms within their layers, two to a box, so that few arrows pass behind boxes or cross, and none is long."""
    draw, levels = random.Random(0), range(max(layer.values()) + 1)
    members = {level: [room for room in JOBS if layer.get(room) == level] for level in levels}
    slots = {room: 2 * index - len(rooms) + 1 for rooms in members.values() for index, room in enumerate(rooms)}

    def cost() -> float:
        total = 0.0
        for room, other in arrows:
            x, y, u, v = slots[room], layer[room], slots[other], layer[other]
            total += 0.3 * abs(x - u)
            for level in range(v + 1, y):
                passed = u + (x - u) * (level - v) / (y - v)
                total += 12 * sum(abs(slots[third] - passed) < 1.7 for third in members[level])
            for third, fourth in arrows:
                if layer[third] == y and layer[fourth] == v and (slots[third] - x) * (slots[fourth] - u) < 0:
                    total += 0.5
        return total + 0.05 * sum(abs(slot) for slot in slots.values())

    best, now = dict(slots), cost()
    lowest = now
    for turn in range(20000):
        heat = 6 * (1 - turn / 20000) + 0.01
        before, rooms = dict(slots), members[draw.choice(levels)]
        if len(rooms) > 1 and draw.random() < 0.5:
            one, two = draw.sample(rooms, 2)
            slots[one], slots[two] = slots[two], slots[one]
        else:
            slots[draw.choice(rooms)] += draw.choice((-1, 1))
        places = sorted(slots[room] for room in rooms)
        fits = all(right - left >= 2 for left, right in itertools.pairwise(places)) and max(map(abs, places)) <= 7
        after = cost() if fits else math.inf
        if after <= now or draw.random() < math.exp((now - after) / heat):
            now = after
            if now < lowest:
                best, lowest = dict(slots), now
        else:
            slots.clear()
            slots.update(before)
    return best


def draw_layers(axes, edges: dict[str, Counter], lines: Counter) -> None:
    """Rooms as boxes, each above what it imports."""
    layer = layers_of(edges)
    width, height = 1.72, 0.62
    arrows = [(room, other) for room, other in reduced(edges) if not (room in FREE and layer[room] - layer[other] > 1)]
    places = {room: (slot * 1.03, layer[room] * 1.3) for room, slot in arranged(layer, arrows).items()}
    for room, other in arrows:
        (x, y), (u, v) = places[room], places[other]
        axes.annotate(
            "",
            xy=(u, v + height / 2),
            xytext=(x, y - height / 2),
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#8a8a8a",
                "lw": 1.0,
                "shrinkA": 0,
                "shrinkB": 1,
            },
        )
    for room, (x, y) in places.items():
        color = next(color for color, members in GROUPS.items() if room in members)
        box = FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            fc=color,
            ec="#777777",
            zorder=3,
        )
        axes.add_patch(box)
        axes.text(x, y + 0.12, room, ha="center", va="center", fontsize=10, fontweight="bold", color=INK, zorder=4)
        axes.text(
            x, y - 0.13, f"{JOBS[room]}, {lines[room] / 1000:.1f}k", ha="center", va="center", fontsize=5.8, color=INK, zorder=4
        )
    xs, ys = zip(*places.values())
    axes.set_xlim(min(xs) - 1.0, max(xs) + 1.0)
    axes.set_ylim(-0.6, max(ys) + 0.6)
    axes.set_title(
        "Each room stands above all that it imports (lines of code in thousands). Left out: arrows that follow from others, "
        "long ones of cli, app and demo.",
        fontsize=9,
        loc="left",
    )
    axes.axis("off")


def draw_matrix(axes, edges: dict[str, Counter], plan: dict[str, set[str]]) -> None:
    """Who imports whom, by number of import statements."""
    layer = layers_of(edges)
    rooms = sorted(edges, key=lambda room: (-layer[room], list(JOBS).index(room)))
    for row, room in enumerate(rooms):
        for column, other in enumerate(rooms):
            used, allowed = edges[room][other], other in plan.get(room, set())
            if used or allowed:
                axes.add_patch(
                    Rectangle((column, row), 0.94, 0.94, fc=USED if used else "white", ec=USED if used else ALLOWED, lw=0.8)
                )
            if used:
                axes.text(column + 0.47, row + 0.49, str(used), ha="center", va="center", fontsize=6.5, color="white")
        axes.add_patch(Rectangle((row, row), 0.94, 0.94, fc="#eeeeee", ec="none"))
    places = [index + 0.47 for index in range(len(rooms))]
    axes.set_xticks(places, rooms, rotation=60, ha="left", fontsize=8)
    axes.set_yticks(places, rooms, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlim(-0.1, len(rooms) + 0.1)
    axes.set_ylim(len(rooms) + 0.1, -0.1)
    axes.set_aspect("equal")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("A row imports its columns: number of import statements.", fontsize=9, loc="left")


def draw() -> Figure:
    """Layers on top, the matrix below."""
    edges, lines = real_imports()
    figure = Figure(figsize=(14.5, 18), layout="constrained", facecolor="white")
    above, below = figure.subplots(2, 1, height_ratios=[1.05, 1])
    draw_layers(above, edges, lines)
    draw_matrix(below, edges, planned_imports())
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "architecture.png")
    picture = BytesIO()
    draw().savefig(picture, dpi=90)
    Image.open(picture).convert("RGB").quantize(32).save(parser.parse_args().out, optimize=True)  # flat colors: a third of the size
