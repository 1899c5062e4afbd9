"""Whatever the system refuses, and whenever: no crash, no hang, no lost block, and all is well once it gives again."""

from __future__ import annotations

import re

import pytest
from _helpers import ROOT, case_names, program, succeed

DEBUG = ("-DHAK_DEBUG=1", "-DHAK_NO_OVERRIDE=1", '-DHAK_VARIANT="debug"', "-rdynamic")
MMAP, MREMAP, MADVISE, MUNMAP, MPROTECT, ALL, HALF = 1, 2, 4, 8, 16, 31, 32
FOR_EVER = 1 << 62
WITH = {"ranges_are_not_used_up": {"HAKMEM_RESERVE": "1"}}


def faults(*arguments: object, **env: str) -> str:
    """Run tests/c/faults.c, which has hakmem's debug variant inside."""
    built = program("faults.c", *DEBUG, also=ROOT / "_hakmem_backend.c")
    return succeed([built, *map(str, arguments)], preload=False, env=env)


@pytest.mark.parametrize("case", case_names("faults.c"))
def test_a_refusal_at_one_place(case: str) -> None:
    faults(case, **WITH.get(case, {}))


EVERY = [
    *((calls, count, "0") for calls in (MMAP, MREMAP, MUNMAP, MPROTECT) for count in (1, 3, FOR_EVER)),
    *((MADVISE, count, "0") for count in (1, FOR_EVER)),
    *((ALL, count, "0") for count in (1, FOR_EVER)),
    (ALL | HALF, 3, "0"),
    *((calls, 2, "1") for calls in (MMAP, MUNMAP)),  # many small ranges instead of one
]


@pytest.mark.parametrize(("calls", "count", "reserve"), EVERY)
def test_every_call_refused_in_turn(calls: int, count: int, reserve: str) -> None:
    output = faults("every_call", calls, count, HAKMEM_RESERVE=reserve)
    print(output)
    lives, refused, *_ = map(int, re.findall(r"\d+", output))
    assert lives > 8
    assert refused > lives // 2  # the last lives find nothing left to refuse; others may by chance


@pytest.mark.parametrize(("calls", "reserve"), [(MUNMAP, "0"), (ALL, "0"), (ALL | HALF, "1")])
def test_what_is_mapped_does_not_grow(calls: int, reserve: str) -> None:
    assert int(faults("again", calls, HAKMEM_RESERVE=reserve).split()[0]) >= 25


@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize("count", [1, 2, 16, FOR_EVER])
def test_the_first_calls_of_a_process(nth: int, count: int) -> None:
    faults("started", REFUSE=f"{ALL} {nth} {count}")
