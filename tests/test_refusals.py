"""Whatever the system refuses, and whenever: no crash, no hang, no lost block, and all is well once it gives again."""

from __future__ import annotations

import re
import sys

import pytest
from _helpers import ROOT, case_names, program, succeed

import build

DEBUG = ("-DHAK_DEBUG=1", "-DHAK_NO_OVERRIDE=1", '-DHAK_VARIANT="debug"', "-rdynamic")
MMAP, MREMAP, MADVISE, MUNMAP, MPROTECT, ALL, HALF = 1, 2, 4, 8, 16, 31, 32
FOR_EVER = 1 << 62
WITH = {"ranges_are_not_used_up": {"HAKMEM_RESERVE": "1"}}


def refusals(*arguments: object, **env: str) -> str:
    """Run tests/c/refusals.c, which has hakmem's debug variant inside."""
    built = program("refusals.c", *DEBUG, also=ROOT / "_hakmem_backend.c")
    return succeed([built, *map(str, arguments)], preload=False, env=env)


@pytest.mark.parametrize("case", case_names("refusals.c"))
def test_a_refusal_at_one_place(case: str) -> None:
    refusals(case, **WITH.get(case, {}))


EVERY = [
    *((calls, count, "0") for calls in (MMAP, MREMAP, MUNMAP, MPROTECT) for count in (1, 3, FOR_EVER)),
    *((MADVISE, count, "0") for count in (1, FOR_EVER)),
    *((ALL, count, "0") for count in (1, FOR_EVER)),
    (ALL | HALF, 3, "0"),
    *((calls, 2, "1") for calls in (MMAP, MUNMAP)),  # many small ranges instead of one
]


@pytest.mark.parametrize(("calls", "count", "reserve"), EVERY)
def test_every_call_refused_in_turn(calls: int, count: int, reserve: str) -> None:
    output = refusals("every_call", calls, count, HAKMEM_RESERVE=reserve)
    print(output)
    lives, refused, *_ = map(int, re.findall(r"\d+", output))
    assert lives > 8
    assert refused > lives // 2  # the last lives find nothing left to refuse; others may by chance


@pytest.mark.parametrize(("calls", "reserve"), [(MUNMAP, "0"), (ALL, "0"), (ALL | HALF, "1")])
def test_what_is_mapped_does_not_grow(calls: int, reserve: str) -> None:
    assert int(refusals("again", calls, HAKMEM_RESERVE=reserve).split()[0]) >= 25


@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize("count", [1, 2, 16, FOR_EVER])
def test_the_first_calls_of_a_process(nth: int, count: int) -> None:
    refusals("started", REFUSE=f"{ALL} {nth} {count}")


PYTHON = """if True:
    import ctypes, hakmem
    MIB = 1 << 20
    fail = ctypes.CDLL(hakmem.mode().path).hak_debug_fail
    fail.argtypes, fail.restype = [ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64], ctypes.c_uint64
    old = hakmem.malloc(3 * MIB)
    ctypes.memset(old, 7, 3 * MIB)
    calls = {
        "malloc": lambda: hakmem.malloc(70 * MIB),
        "malloc of a class": lambda: [hakmem.malloc(MIB) for _ in range(100)],
        "calloc": lambda: hakmem.calloc(70, MIB),
        "realloc": lambda: hakmem.realloc(old, 70 * MIB),
        "aligned_alloc": lambda: hakmem.aligned_alloc(128 * MIB, MIB),
        "Buffer": lambda: hakmem.Buffer(70 * MIB),
    }
    for name, call in calls.items():
        fail(31, 1, 1 << 62)
        before = hakmem.memory_stats()["allocs"]
        try:
            call()
        except MemoryError as error:
            assert "out of memory" in str(error), error
        else:
            raise AssertionError(name + " raised nothing")
        assert fail(0, 0, 0) > 0, name
        if "class" not in name:
            assert hakmem.memory_stats()["allocs"] == before, name
    assert ctypes.string_at(old, 3 * MIB) == bytes([7]) * (3 * MIB)
    fail(31, 1, 1 << 62)
    hakmem.report("pools", fmt="json"), hakmem.memory_snapshot(), hakmem.trim(), hakmem.reset_peak_memory_stats()
    fail(0, 0, 0)
    grown = hakmem.realloc(old, 70 * MIB)
    assert ctypes.string_at(grown, 3 * MIB) == bytes([7]) * (3 * MIB)
    hakmem.free(grown)
    with hakmem.Buffer(70 * MIB) as buffer:
        memoryview(buffer)[5] = 1
    hakmem.free(hakmem.calloc(70, MIB))
    stats = hakmem.memory_stats()
    assert stats["allocs"] - stats["frees"] == stats["live_blocks"]
    print("usable")"""


def test_python_raises_memory_error_and_goes_on() -> None:
    env = {"HAKMEM_LIBRARY": str(build.build("debug", quiet=True)), "PYTHONPATH": str(ROOT)}
    assert succeed([sys.executable, "-c", PYTHON], preload=False, env=env) == "usable\n"


@pytest.mark.parametrize("case", ["refused_for_a_while", "refused_for_good"])
def test_operator_new_when_the_system_refuses(case: str) -> None:
    env = {"LD_PRELOAD": str(build.build("debug", quiet=True))}
    succeed([program("new_delete.cc"), case], preload=False, env=env)
