"""realloc keeps what is in a block, and takes a quarter more for one that is appended to, and only for such a one."""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any, Optional

import pytest
from _helpers import ROOT, succeed

import build
import hakmem

KIB = 1 << 10
SIZES = [row.size for row in hakmem.class_table()]


def exact(size: int) -> int:
    """The room of a block that is asked for at once."""
    pointer = hakmem.malloc(size)
    room = hakmem.usable_size(pointer)
    hakmem.free(pointer)
    return room


def append(pointer: Optional[int], size: int, more: int) -> int:
    """`more` bytes behind the `size` that the block has, each byte by its place."""
    grown: Any = hakmem.realloc(pointer, size + more)
    ctypes.memmove(grown + size, bytes((size + i) % 251 for i in range(more)), more)
    return int(grown)


def moves_of(buffers: int, most: int, step: int) -> int:
    """Moves in which so many buffers, in turn, grow step by step; what is in them is looked at."""
    pointers: list[Optional[int]] = [None] * buffers
    moves = 0
    for size in range(0, most, step):
        for i, old in enumerate(pointers):
            pointers[i] = append(old, size, step)
            moves += old is not None and pointers[i] != old
            assert hakmem.usable_size(pointers[i]) <= (size + step) * 1.45 + 16
    pattern = bytes(i % 251 for i in range(most))
    for pointer in pointers:
        assert pointer is not None
        assert ctypes.string_at(pointer, most) == pattern
        hakmem.free(pointer)
    return moves


@pytest.mark.parametrize("buffers", [1, 16])
def test_a_buffer_that_is_appended_to_skips_classes(buffers: int) -> None:
    classes = len({exact(size) for size in range(64, 64 * KIB + 1, 64)})
    moves = moves_of(buffers, 64 * KIB, 64) / buffers
    print(f"{moves:.1f} moves through {classes} classes")
    assert moves < 0.75 * classes


ONCE = """if True:
    import hakmem
    grown = []  # kept, so that none of them is where another was that grew
    for row in hakmem.class_table()[:-1]:
        for _ in range(3):  # the second is where the first was before it moved
            grown.append(hakmem.realloc(hakmem.malloc(row.size), row.size + 1))
            asked = hakmem.malloc(row.size + 1)
            assert hakmem.usable_size(grown[-1]) == hakmem.usable_size(asked), row.size
            hakmem.free(asked)
    print(len(grown))"""


def test_a_block_that_grows_once_gets_what_it_was_asked_for() -> None:
    output = succeed([sys.executable, "-c", ONCE], preload=False, env={"PYTHONPATH": str(ROOT)})
    assert int(output) == 3 * (len(SIZES) - 1)


def test_the_next_block_at_a_place_that_was_left_begins_anew() -> None:
    first: Any = hakmem.realloc(hakmem.malloc(5 * KIB), 5 * KIB + 1)
    room = hakmem.usable_size(first)
    grown: Any = hakmem.realloc(first, room + 1)
    assert hakmem.usable_size(grown) > exact(room + 1)
    again = hakmem.malloc(room)
    assert again == first
    once: Any = hakmem.realloc(again, room + 1)
    assert hakmem.usable_size(once) == exact(room + 1)
    hakmem.free(once)
    hakmem.free(grown)


def test_a_block_that_doubles_gets_what_it_was_asked_for_however_often() -> None:
    pointer: Any = None
    size = 24
    while size < 512 * KIB:
        size += size + 1
        pointer = hakmem.realloc(pointer, size)
        assert hakmem.usable_size(pointer) == exact(size)
    hakmem.free(pointer)


def test_a_block_of_another_thread_stays_if_it_has_the_room_and_moves_if_not() -> None:
    pointers: list[int] = []
    worker = threading.Thread(target=lambda: pointers.append(append(None, 0, 5000)))
    worker.start()
    worker.join()
    before = hakmem.memory_stats()["reallocs_kept"]
    assert hakmem.realloc(pointers[0], 5001) == pointers[0]
    assert hakmem.memory_stats()["reallocs_kept"] == before + 1
    moved: Any = hakmem.realloc(pointers[0], 9000)
    assert moved != pointers[0]
    assert ctypes.string_at(moved, 5000) == bytes(i % 251 for i in range(5000))
    hakmem.free(moved)


REFUSED = """if True:
    import ctypes, hakmem
    fail = ctypes.CDLL(hakmem.mode().path).hak_debug_fail
    fail.argtypes, fail.restype = [ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64], ctypes.c_uint64
    pointer = hakmem.realloc(hakmem.malloc(300_000), 330_000)  # from now on it is known to grow
    room = hakmem.usable_size(pointer)
    ctypes.memset(pointer, 7, room)
    spare = hakmem.malloc(room + 1)
    size = hakmem.usable_size(spare)
    fail(31, 1, 1 << 62)
    try:
        while True: hakmem.malloc(40_000)
    except MemoryError:
        hakmem.free(spare)
    grown = hakmem.realloc(pointer, room + 1)
    assert grown == spare and hakmem.usable_size(grown) == size < room + room // 4
    assert ctypes.string_at(grown, room) == bytes([7]) * room
    print("grown")"""


def test_where_there_is_no_memory_for_more_it_gets_what_it_was_asked_for() -> None:
    env = {"HAKMEM_LIBRARY": str(build.build("debug", quiet=True)), "PYTHONPATH": str(ROOT)}
    assert succeed([sys.executable, "-c", REFUSED], preload=False, env=env) == "grown\n"
