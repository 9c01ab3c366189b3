"""A level small enough to know every answer: a room of 512 x 512 with a platform, and optionally a second room."""

import numpy as np

from noise2map.data.freedoom import wad

ROOM = ((0, 0), (0, 512), (512, 512), (512, 0))  # clockwise: the inside is on the right, the front side
PLATFORM = ((256, 192), (256, 320), (384, 320), (384, 192))


def make_lumps(
    platform_floor: int = 16,
    platform_ceiling: int = 128,
    ceiling_flat: bytes = b"CEIL1_1",
    platform_flat: bytes = b"FLOOR0_1",
    special: int = 0,
) -> wad.MapLumps:
    vertices = np.array([*ROOM, *PLATFORM], wad._VERTEX)
    outer = [(i, (i + 1) % 4, 1, 0, 0, 0, 0xFFFF) for i in range(4)]
    # fronts face the room: a door special opens the sector behind, the platform
    inner = [(4 + (i + 1) % 4, 4 + i, 4, special, 0, 2, 1) for i in range(4)]
    sides = [(0, 0, b"-", b"-", b"STONE", 0), (0, 0, b"STONE", b"STONE", b"-", 1), (0, 0, b"STONE", b"STONE", b"-", 0)]
    sectors = [
        (0, 128, b"FLOOR0_1", ceiling_flat, 160, 0, 0),
        (platform_floor, platform_ceiling, platform_flat, ceiling_flat, 160, 0, 0),
    ]
    return wad.MapLumps(
        things=np.array([(64, 256, 0, 1, 7)], wad._THING),
        lines=np.array(outer + inner, wad._LINE),
        sides=np.array(sides, wad._SIDE),
        vertices=vertices,
        sectors=np.array(sectors, wad._SECTOR),
    )
