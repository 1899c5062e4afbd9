"""Programs without a fault do under the hardened library, at both levels, what they do without: no false alarm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional

import pytest
from _helpers import ROOT, Argument, build, case_names, program, succeed
from test_programs import perl, python, sqlite3

LEVELS = ["1", "2"]
SLOW = ["calloc_zero"]  # the same calls as in other cases, with gigabytes
THREADS = ["producers_and_consumers", "free_only_thread", "threads_hand_blocks_on", "thread_data_destructors"]
FORKS = ["from_threads", "memory_is_separate", "programs_from_threads"]
PROGRAMS = [(perl, "1"), (python, "2"), (sqlite3, "1"), (sqlite3, "2")]


def under(level: str, command: list[Argument], *, quiet: bool = True, env: Optional[dict[str, str]] = None) -> str:
    library = build.build("hardened", quiet=True)
    return succeed(command, preload=False, first=library, env={"HAKMEM_HARDENED": level, **(env or {})}, quiet=quiet)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("switch", ["", "HAKMEM_ENABLE_TLS", "HAKMEM_TINY_USE_SUPERSLAB"])
def test_random_operations_against_a_naive_model(switch: str, level: str) -> None:
    command: list[Argument] = [program("model.c", "-O2"), 1, 10000, 100]
    assert under(level, command, env={switch: "0"} if switch else {}) == succeed(command)


@pytest.mark.parametrize("case", [name for name in case_names("libc_surface.c") if name not in SLOW])
def test_libc(case: str) -> None:
    under("1", [program("libc_surface.c"), case], quiet=case != "statistics_calls")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", case_names("new_delete.cc"))
def test_new_and_delete(case: str, level: str) -> None:
    under(level, [program("new_delete.cc"), case])


def test_cxx_containers() -> None:
    under("2", [program("containers.cc")])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", THREADS)
def test_threads(case: str, level: str) -> None:
    under(level, [program("threads.c"), case])


@pytest.mark.parametrize("case", FORKS)
def test_fork(case: str) -> None:
    under("2", [program("fork.c"), case])


@pytest.mark.parametrize("level", LEVELS)
def test_free_stretches_do_not_use_up_the_mappings(level: str) -> None:
    under(level, [program("regressions.c"), "many_free_stretches"])


@pytest.mark.parametrize(("recipe", "level"), PROGRAMS, ids=lambda value: getattr(value, "__name__", value))
def test_programs(recipe, level: str, tmp_path: Path) -> None:
    def go(command: list[Argument], env: Optional[dict[str, str]] = None, stdin: Optional[bytes] = None) -> str:
        library = None if which == "plain" else build.build("hardened", quiet=True)
        changed = {"HAKMEM_HARDENED": level} if library else {}
        return succeed(command, preload=False, first=library, cwd=here, env={**changed, **(env or {})}, stdin=stdin)

    said = {}
    for which in ("plain", "hardened"):
        here = tmp_path / "here"  # one path for both: compilers write where they were into what they make
        here.mkdir()
        said[which] = recipe(go, here)
        here.rename(tmp_path / which)
    assert said["plain"] == said["hardened"]


def test_the_hardened_library_really_is_loaded() -> None:
    script = "import ctypes; print(ctypes.CDLL(None).hak_about() != 0)"
    assert under("2", [sys.executable, "-c", script]) == "True\n"


def reuse(level: str, **env: str) -> tuple[int, list[int], list[int]]:
    command: list[Argument] = [program("reuse.c")]
    lines = (under(level, command, env=env) if level else succeed(command, env=env)).splitlines()
    same, own, other = ([int(word) for word in line.split()[1:]] for line in lines)
    assert sorted(own) == sorted(other) == list(range(24))
    return same[0], own, other


@pytest.mark.parametrize("env", [{}, {"HAKMEM_ENABLE_TLS": "0"}, {"HAKMEM_TLS_TINY": "0"}], ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_blocks_come_back_in_another_order_each_time(level: str, env: dict[str, str]) -> None:
    runs = [reuse(level, **env) for _ in range(3)]
    assert all(same < 300 for same, _own, _other in runs)
    assert len({tuple(own) for _same, own, _other in runs}) == 3
    assert len({tuple(other) for _same, _own, other in runs}) == 3


def test_in_the_default_library_a_freed_block_is_the_next_one() -> None:
    same, own, _other = reuse("")
    assert same == 1000
    assert own == list(range(23, -1, -1))


PROMISES = """
import ctypes, hakmem
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
blocks = [libc.malloc(30000) for _ in range(400)]
for i, block in enumerate(blocks):
    if i % 8: libc.free(block)
slabs = [row for row in hakmem._Here().rows("segment") if row.state == "slab" and row.block_size > 30000]
print(sum(slab.free_page_bytes for slab in slabs))
"""


@pytest.mark.parametrize("level", LEVELS)
def test_no_pages_are_promised_that_are_kept_to_be_checked(level: str) -> None:
    said = under(level, [sys.executable, "-c", PROMISES], env={"PYTHONPATH": str(ROOT)})
    assert (int(said) > 0) == (level == "1"), said
