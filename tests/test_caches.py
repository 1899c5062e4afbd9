"""A thread's caches grow and shrink by their rule, give back what they may not hold, and keep within the limit."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from _helpers import ROOT, program, run, succeed, text

DEFINES = ("-DHAK_NO_OVERRIDE=1", "-Dclock_gettime=caches_clock_gettime")
HARDENED = "-DHAK_HARDENED=1"
FIXED = {"HAKMEM_ADAPTIVE_SIZING": "0"}
LINE = r"\[TLS_CACHE\] (Grow|Shrink) class (\d+): (\d+) -> (\d+) slots \((grow|shrink)_count=(\d+)\)"


def caches(*flags: str) -> Path:
    return program("caches.c", *DEFINES, *flags, also=ROOT / "_hakmem_backend.c")


def case(name: str, *flags: str, **env: str) -> str:
    return succeed([caches(*flags), name], preload=False, env=env)


@pytest.mark.parametrize("flag", ["-DHAK_DEBUG=1", HARDENED])
@pytest.mark.parametrize(
    "name", ["rule", "ten_refills", "one_way", "out_of_use", "short_refills", "limit_lowered", "in_a_child"]
)
def test_capacities(name: str, flag: str) -> None:
    case(name, flag)


@pytest.mark.parametrize("first", [0, 1, 16, 64, 100, 256, 2048])
def test_a_fixed_capacity_never_changes(first: int) -> None:
    case("fixed", "-DHAK_DEBUG=1", **FIXED, HAKMEM_CACHE_FIRST=str(first))


@pytest.mark.parametrize("limit", ["0", "1M", "8M"])
def test_64_threads_keep_within_the_limit_generation_after_generation(limit: str) -> None:
    case("limit", "-DHAK_DEBUG=1", HAKMEM_CACHE_LIMIT=limit)


def test_without_thread_caches_there_are_no_capacities() -> None:
    case("none", "-DHAK_DEBUG=1", HAKMEM_ENABLE_TLS="0")


def test_the_log_tells_of_each_change_and_is_silent_by_default() -> None:
    done = run([caches("-DHAK_DEBUG=1"), "out_of_use"], preload=False, env={"HAKMEM_ADAPTIVE_LOG": "1"})
    assert done.returncode == 0, text(done.stderr)[-3000:]
    lines = text(done.stderr).splitlines()
    assert re.fullmatch(r"\[TLS_CACHE\] Grow class \d+: 64 -> 128 slots \(grow_count=1\)", lines[0])
    capacity: dict[str, int] = {}
    counts: dict[tuple[str, str], int] = {}
    for line in lines:
        found = re.fullmatch(LINE, line)
        assert found, line
        word, number, old, new, same, count = found.groups()
        assert same == word.lower()
        assert capacity.get(number) in (None, 0, int(old)), line  # 0: out of use, and begun again
        assert int(new) == (int(old) * 2 if word == "Grow" else int(old) // 2 if int(new) else 0), line
        counts[number, word] = counts.get((number, word), 0) + 1
        assert int(count) == counts[number, word], line
        capacity[number] = int(new)
    assert {word for _, word in counts} == {"Grow", "Shrink"}
    assert not run([caches("-DHAK_DEBUG=1"), "out_of_use"], preload=False).stderr


@pytest.mark.parametrize("flag", ["-DHAK_DEBUG=1", HARDENED])
def test_the_caches_of_a_warmed_thread_serve_its_first_mallocs(flag: str) -> None:
    classes = 53
    for level, misses in (("0", classes - 1), ("1", 0), ("2", 0)):  # of 0 the first call has filled one
        out = case("prewarm", flag, HAKMEM_PREWARM_TLS=level)
        assert out == f"{misses} of {classes}\n" * 2, level


def test_only_the_tiers_that_are_cached_are_warmed() -> None:
    assert case("prewarm", "-DHAK_DEBUG=1", HAKMEM_PREWARM_TLS="1", HAKMEM_TLS_L2="0") == "20 of 53\n" * 2


@pytest.mark.parametrize("level", ["1", "2"])
def test_a_thread_is_warmed_as_far_as_there_is_memory(level: str) -> None:
    case("prewarm_out_of_memory", "-DHAK_DEBUG=1", HAKMEM_PREWARM_TLS=level)


def test_the_view_has_what_each_class_may_hold_and_the_limit() -> None:
    source = "import hakmem; p = [hakmem.malloc(48) for _ in range(9)]; print(hakmem.report('caches', 'json'))"
    env = {"PYTHONPATH": str(ROOT), "HAKMEM_CACHE_LIMIT": "32M"}
    tables = json.loads(succeed([sys.executable, "-c", source], preload=False, env=env))["tables"]
    row = next(row for row in tables["classes"] if row["size"] == 48)
    assert (row["stacks"], row["capacity"], row["capacity_bytes"]) == (1, 64, 64 * 48)
    counters = {row["counter"]: row["value"] for row in tables["counters"]}
    assert counters["cache_limit"] == 32 << 20
    assert counters["capacity_bytes"] == sum(row["capacity_bytes"] for row in tables["classes"])
