"""By its address, in the registry and by the scan, a pointer is found in the same slab, run or whale."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
from _helpers import ROOT, program, run, succeed, text
from test_faults import BUILDS, library_of
from test_fuzz import fuzz
from test_helgrind import helgrind, threads
from test_tsan import check_stress, need_sanitizer, stress

REGISTRY = "HAKMEM_USE_REGISTRY"
WAYS = {"address": "0", "registry": "1", "scan": "2"}
INDEXED = ("registry", "scan")
DEBUG = "-DHAK_DEBUG=1"

# where slabs and runs lie otherwise than by default
PLACES = {
    "one range": {},
    "many small ranges": {"HAKMEM_RESERVE": "1"},
    "a superslab for each slab": {"HAKMEM_TINY_USE_SUPERSLAB": "0"},
    "no thread caches": {"HAKMEM_ENABLE_TLS": "0"},
}


def cases(*flags: str) -> Path:
    """tests/c/lookup.c, which has hakmem inside."""
    return program("lookup.c", "-DHAK_NO_OVERRIDE=1", "-rdynamic", *flags, also=ROOT / "_hakmem_backend.c")


def lookup(case: str, way: str, *flags: str, **env: str) -> None:
    check_stress([cases(*flags), case], {REGISTRY: WAYS[way], **env})


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_the_ways_agree_after_every_step_of_a_random_program(way: str, place: str) -> None:
    lookup("a_random_program", way, DEBUG, **PLACES[place])


@pytest.mark.parametrize("way", WAYS)
def test_readers_find_what_stands_still_while_others_make_and_end_slabs(way: str) -> None:
    lookup("readers_beside_makers", way, DEBUG)


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_never_misses_a_segment_whose_entry_moves(way: str) -> None:
    lookup("a_segment_that_moves_is_never_lost", way, DEBUG)


@pytest.mark.parametrize("way", WAYS)
def test_readers_beside_makers_under_thread_sanitizer(way: str) -> None:
    lookup("readers_beside_makers", way, need_sanitizer("thread"))


@pytest.mark.parametrize("way", INDEXED)
def test_the_stress_program_under_thread_sanitizer(way: str) -> None:
    check_stress([stress("thread"), 1], {REGISTRY: WAYS[way]})


@pytest.mark.soak
@pytest.mark.parametrize("way", INDEXED)
def test_no_error_under_helgrind_without_thread_caches(way: str) -> None:
    done = helgrind(threads(), 1, {REGISTRY: WAYS[way]})
    assert (done.returncode, done.stdout, done.stderr[:6000]) == (0, b"1 rounds\n", b"")


@pytest.mark.parametrize("way", WAYS)
def test_a_child_of_a_process_whose_threads_make_slabs_has_a_whole_index(way: str) -> None:
    lookup("children_of_makers", way, DEBUG)


@pytest.mark.parametrize("way", WAYS)
def test_what_finds_no_memory_to_stand_in_the_index_is_found_by_its_address(way: str) -> None:
    lookup("no_memory_for_the_index", way, DEBUG)


@pytest.mark.parametrize("way", INDEXED)
def test_random_inputs(way: str) -> None:
    fuzz("debug", 30_000, 60, **{REGISTRY: WAYS[way]})
    fuzz("debug", 40_000, 20, **{REGISTRY: WAYS[way], "HAKMEM_RESERVE": str(16 << 20)})


@pytest.mark.parametrize("way", INDEXED)
@pytest.mark.parametrize("which", BUILDS)
def test_the_checked_calls_return_the_same_errors(which: str, way: str) -> None:
    env = {**BUILDS[which], REGISTRY: WAYS[way]}
    succeed([program("checked.c")], preload=False, first=library_of(which), env=env)


BAD = {
    "free_in_the_middle_of_a_run": "inside a block, not its start",
    "free_in_the_middle_of_a_whale": "inside a block, not its start",
    "free_what_is_foreign": "not a block of hakmem",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_pointer_is_called_by_the_same_name(case: str, way: str) -> None:
    done = run([cases(DEBUG), case], preload=False, env={REGISTRY: WAYS[way]})
    assert done.returncode == -signal.SIGABRT
    assert re.fullmatch(rf"hakmem: free\(0x[0-9a-f]+\): {BAD[case]}\n", text(done.stderr)), done.stderr


PYTHON = """if True:
    import hakmem
    MIB = 1 << 20
    way = hakmem.config["use_registry"]
    pointers = [hakmem.malloc(size) for size in (24, 60_000, 3 * MIB, 100 * MIB)]
    for pointer in pointers:
        owner = hakmem.owner_of(pointer + hakmem.usable_size(pointer) - 1)
        assert owner.base == pointer and owner.state == "live", owner
        try:
            hakmem.free(pointer + 8)
        except hakmem.HakmemError as error:
            assert "inside a block" in str(error), error
        else:
            raise AssertionError("freed from its middle")
    stats = hakmem.memory_stats()
    count = sum(stats[name] for name in ("slabs", "orphan_slabs", "large_blocks", "whale_blocks"))
    assert stats["index_segments"] == (count if way else 0), (way, stats)
    assert bool(stats["index_bytes"]) == bool(way) and stats["index_refusals"] == 0
    assert "index_bytes" in hakmem.report("pools")
    [lock] = [row for row in hakmem.lock_table() if row.name == "index"]
    assert bool(lock.taken) == bool(way), lock
    for pointer in pointers:
        hakmem.free(pointer)
    print(way)"""


@pytest.mark.parametrize("way", WAYS)
def test_python_sees_the_option_and_what_it_costs(way: str) -> None:
    env = {REGISTRY: WAYS[way], "PYTHONPATH": str(ROOT)}
    assert succeed([sys.executable, "-c", PYTHON], preload=False, env=env) == f"{WAYS[way]}\n"
