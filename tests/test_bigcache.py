"""BigCache hands freed blocks above 1 MiB out again by site and size; what it keeps is bounded, ages and is counted."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from _helpers import ROOT, case_names, program, run, succeed, text

import hakmem

MIB = 1 << 20
DIE = ("double_free", "free_inside_of_a_freed_one")
DEBUG = ("-DHAK_DEBUG=1", "-DHAK_NO_OVERRIDE=1", '-DHAK_VARIANT="debug"', "-rdynamic")


def refusing() -> Path:
    """The cases in which the system refuses memory, in one program with the allocator."""
    return program("bigcache_refused.c", *DEBUG, also=ROOT / "_hakmem_backend.c")


@pytest.mark.parametrize("case", [name for name in case_names("bigcache.c") if name not in DIE])
def test_it_holds_that(case: str) -> None:
    if succeed([program("bigcache.c"), case]) == "no room\n":
        pytest.skip("59 GB of address space is not to be had")


@pytest.mark.parametrize("case", DIE)
def test_a_kept_block_that_is_freed_again_ends_the_process(case: str) -> None:
    done = run([program("bigcache.c"), case])
    assert done.returncode == -signal.SIGABRT
    assert "already free" in text(done.stderr)


@pytest.mark.parametrize("case", case_names("bigcache_refused.c"))
def test_when_the_system_refuses_memory(case: str) -> None:
    succeed([refusing(), case], preload=False)


@pytest.mark.parametrize("bigcache", ["0", "4M", ""])
def test_threads_and_forks_at_each_budget(bigcache: str) -> None:
    succeed([program("bigcache.c"), "threads_and_forks"], env={"HAKMEM_BIGCACHE": bigcache} if bigcache else {})


def test_the_table_and_the_view_say_what_is_kept(python: Any) -> None:
    python("""if True:
        import json, hakmem
        MIB = 1 << 20
        assert hakmem.big_table() == []
        pointers = [hakmem.alloc_at(2 * MIB, 7) for _ in range(3)]
        for pointer in pointers:
            hakmem.free(pointer)
        (row,) = hakmem.big_table()
        assert (row.site, row.size, row.entries, row.bytes, row.hits, row.misses) == (7, 2 * MIB, 3, 6 * MIB, 0, 3)
        assert hakmem.alloc_at(2 * MIB, 7) == pointers[-1]
        assert hakmem.big_table()[0].hits == 1
        tables = json.loads(hakmem.report("bigcache", fmt="json"))["tables"]
        assert [tuple(row.values()) for row in tables["keys"]] == [tuple(row) for row in hakmem.big_table()]
        counters = {each["counter"]: each["value"] for each in tables["counters"]}
        assert counters["big_hits"] == 1 and counters["big_misses"] == 3 and counters["big_entries"] == 2
        assert counters["kept_whale_bytes"] == 4 * MIB
        assert hakmem.trim() >= 0 and hakmem.memory_stats()["big_entries"] == 0
    """)


def test_the_budget_can_be_changed_while_the_program_runs() -> None:
    with pytest.raises(hakmem.HakmemError):
        hakmem.config.bigcache = -1
    before = hakmem.config.bigcache
    try:
        hakmem.config.bigcache = 0
        hakmem.free(hakmem.malloc(3 * MIB))
        assert not any(row.entries for row in hakmem.big_table() if row.size == 3 * MIB)
    finally:
        hakmem.config.bigcache = before
    assert json.loads(hakmem.report("bigcache", fmt="json"))["view"] == "bigcache"
