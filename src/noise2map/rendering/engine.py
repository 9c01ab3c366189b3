"""One running ViZDoom engine on one Freedoom map: warp, turn, look. Needs the ``render`` extra."""

import contextlib
import importlib
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from noise2map.rendering.raycast import Camera, Pose
from noise2map.rendering.wad import Wad

_SETTLE_TICS = 3  # after a warp the eye sinks to the new floor for three tics

_WAKE_TICS = 10  # the engine ignores turning in the first seven tics of an episode

_SKILL = 4

_CONFIG_NAME = "engine.ini"

_UNWANTED = ("hud", "minimal_hud", "weapon", "crosshair", "messages", "particles", "decals", "effects_sprites", "screen_flashes")


@dataclass(frozen=True)
class SeenObject:
    """An object with visible pixels: the value that marks them in the labels buffer, its category, and its position."""

    mark: int
    category: str
    x: float
    y: float


@dataclass(frozen=True)
class Observation:
    """One view, arrays ``(H, W)`` uint8.

    Attributes:
        pose: Camera pose as the engine reports it.
        color: Index of each pixel's color in the game's palette; of a supersampled view the mean color of each block of drawn
            pixels, ``(H, W, 3)`` uint8. The other arrays are those of the drawn pixel in its middle, see :class:`Camera`.
        depth: The engine's own depth, in steps of 7.16 map units and clipped; only for checking.
        labels: 0 wall or sky, 1 floor or ceiling, more for objects (see ``objects``).
        objects: Objects with visible pixels.
    """

    pose: Pose
    color: np.ndarray
    depth: np.ndarray
    labels: np.ndarray
    objects: tuple[SeenObject, ...]


def import_vizdoom() -> ModuleType:
    """The ``vizdoom`` module, or an ImportError that says how to install it."""
    try:
        return importlib.import_module("vizdoom")
    except ImportError as error:
        raise ImportError(f'rendering Freedoom needs ViZDoom: pip install "noise2map[render]" ({error})') from error


def wad_path(map_name: str) -> Path:
    """The Freedoom WAD inside the ``vizdoom`` package that holds this map (never a WAD of the user's)."""
    phase = 1 if map_name.startswith("E") else 2
    path = Path(import_vizdoom().__file__).parent / f"freedoom{phase}.wad"
    if not path.is_file():
        raise FileNotFoundError(f"the vizdoom package has no {path.name} (looked at {path}); reinstall it")
    return path


def supported_sizes() -> list[tuple[int, int]]:
    """Image sizes (width, height) that the engine can render, smallest first."""
    names = (name for name in dir(import_vizdoom().ScreenResolution) if name.startswith("RES_"))
    sizes = (tuple(int(part) for part in name[4:].split("X")) for name in names)
    return sorted((width, height) for width, height in sizes)


def check_size(camera: Camera) -> None:
    """Refuse what the engine cannot draw.

    Raises:
        ValueError: If it has no such image size, naming those that it has.
    """
    sizes = supported_sizes()
    if camera.drawn_size in sizes:
        return
    if camera.supersample == 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise ValueError(f"the engine cannot render {camera.width}x{camera.height}; it has {listed}")
    fitting = [
        (w // camera.supersample, h // camera.supersample)
        for w, h in sizes
        if w % camera.supersample == h % camera.supersample == 0
    ]
    drawn = "x".join(str(side) for side in camera.drawn_size)
    listed = ", ".join(f"{width}x{height}" for width, height in fitting)
    raise ValueError(
        f"supersample {camera.supersample} needs images of {drawn} for {camera.width}x{camera.height}, "
        "which the engine cannot render; "
        f"sizes that work with it: {listed}"
    )


def block_mean(colors: np.ndarray, side: int) -> np.ndarray:
    """Mean of each block of ``side`` x ``side`` pixels, rounded: ``(H * side, W * side, 3)`` to ``(H, W, 3)`` uint8."""
    height, width = colors.shape[0] // side, colors.shape[1] // side
    blocks = colors.reshape(height, side, width, side, 3)
    return np.rint(blocks.mean((1, 3), dtype=np.float64)).astype(np.uint8)


def end_stray_engines(scratch: Path) -> int:
    """End engines whose scratch directory lies in ``scratch``, and remove their shared memory.

    An engine outlives a process that was killed. Found through ``/proc``, so on Linux only.

    Returns:
        How many there were.
    """
    ended = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if not any(word.startswith(f"{scratch}/") and word.endswith(_CONFIG_NAME) for word in words):
                continue
            os.kill(int(entry.name), signal.SIGKILL)
            ended += 1
            if "+viz_instance_id" in words[:-1]:
                instance = words[words.index("+viz_instance_id") + 1]
                for path in Path("/dev/shm").glob(f"ViZDoom*{instance}"):
                    path.unlink(missing_ok=True)
    return ended


class Engine:
    """A ViZDoom process on one map. A context manager: the process ends and its scratch directory goes on exit.

    Args:
        map_name: ``E1M1`` to ``E4M9`` or ``MAP01`` to ``MAP32``.
        camera: Image size and supersampling.
        scratch: Parent of the engine's scratch directory (default: the system's).

    Raises:
        ImportError: If ViZDoom is missing.
        ValueError: If the engine has no such image size.
    """

    def __init__(self, map_name: str, camera: Camera, scratch: Path | None = None) -> None:
        vizdoom = import_vizdoom()
        check_size(camera)
        path = wad_path(map_name)
        self.map_name, self.camera = map_name, camera
        self.palette = Wad(path).palette()
        self._scratch = Path(tempfile.mkdtemp(prefix="noise2map-engine-", dir=scratch))
        self._game = game = vizdoom.DoomGame()
        game.set_doom_game_path(str(path))  # explicit: the default search prefers a doom2.wad that lies about
        game.set_doom_map(map_name.lower())
        game.set_doom_skill(_SKILL)
        game.set_doom_config_path(str(self._scratch / _CONFIG_NAME))  # else one appears in the working directory
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, "RES_{}X{}".format(*camera.drawn_size)))
        game.set_screen_format(vizdoom.ScreenFormat.DOOM_256_COLORS8)
        game.set_depth_buffer_enabled(True)
        game.set_labels_buffer_enabled(True)
        for part in _UNWANTED:
            getattr(game, f"set_render_{part}")(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA])
        names = ("POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE", "PITCH")
        game.set_available_game_variables([getattr(vizdoom.GameVariable, f"CAMERA_{name}") for name in names])
        game.add_game_args("+sv_cheats 1 +cl_showsecretmessage 0")

    def __enter__(self) -> "Engine":
        here = os.getcwd()
        try:
            os.chdir(self._scratch)  # the engine makes a folder where it starts
            self._game.init()
        except BaseException:
            self.close()
            raise
        finally:
            os.chdir(here)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine process and remove its scratch directory; safe to call twice."""
        try:
            self._game.close()
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def restart(self, seed: int) -> None:
        """Begin the map anew. What follows depends on the seed and on the calls made, not on what was before."""
        self._game.set_seed(seed)
        self._game.new_episode()
        self._wake()

    def _wake(self) -> None:
        for cheat in ("god", "notarget"):  # nothing hurts the camera, and monsters stay where they are
            self._game.send_game_command(cheat)
        self._game.make_action([0.0], _WAKE_TICS)

    def look_from(self, x: int, y: int, turn_deg: float) -> Observation | None:
        """Warp to whole map units, turn clockwise, let the eye settle, and look.

        Returns:
            The view, or None if the engine did not go there (blocked, or the player died).
        """
        game = self._game
        game.send_game_command(f"warp {x} {y}")
        game.make_action([float(turn_deg)], 1)
        game.make_action([0.0], _SETTLE_TICS)
        view = self._observe()
        if view is None or abs(view.pose.x - x) > 1 or abs(view.pose.y - y) > 1:
            return None
        return view

    def look_around(self, x: int, y: int, turn_deg: float, views: int) -> list[Observation] | None:
        """Warp and look like :meth:`look_from`, then turn clockwise on the spot, one tic for each further view.

        Args:
            x: Whole map units.
            y: Whole map units.
            turn_deg: Clockwise turn before the first view.
            views: Views of a full turn; the engine's angles are multiples of 360 / 65536 degrees, so read their poses.

        Returns:
            The views, clockwise, or None if the engine did not go there.
        """
        seen = [self.look_from(x, y, turn_deg)]
        while seen[-1] is not None and len(seen) < views:
            self._game.make_action([360 / views], 1)
            seen.append(self._observe())
        return None if None in seen else seen

    def _observe(self) -> Observation | None:
        game = self._game
        if game.is_episode_finished():
            game.new_episode()
            self._wake()
            return None
        state = game.get_state()
        pose = Pose(*(float(value) for value in state.game_variables[:4]), (float(state.game_variables[4]) + 180) % 360 - 180)
        objects = tuple(
            SeenObject(label.value, label.object_category, label.object_position_x, label.object_position_y)
            for label in state.labels
            if label.object_name != "DoomPlayer" and label.value > 1  # 0 and 1 mark walls and planes
        )
        color, side = state.screen_buffer, self.camera.supersample
        if side > 1:
            color = block_mean(self.palette[color], side)
        column, row = self.camera.middle
        middle = np.s_[row::side, column::side]
        return Observation(pose, color, state.depth_buffer[middle], state.labels_buffer[middle], objects)
