"""The engine hands out the blocks that its tables promise, loses none, and counts every one, under every switch."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
from _helpers import Argument, case_names, need, program, run, succeed, text

SWITCHES = {
    "default": {},
    "no thread caches": {"HAKMEM_ENABLE_TLS": "0"},
    "no tiny caches": {"HAKMEM_TLS_TINY": "0"},
    "no l2 caches": {"HAKMEM_TLS_L2": "0"},
    "no l25 caches": {"HAKMEM_TLS_L25": "0"},
    "no caches, one by one": {"HAKMEM_TLS_TINY": "0", "HAKMEM_TLS_L2": "0", "HAKMEM_TLS_L25": "0"},
    "one slab a superslab": {"HAKMEM_TINY_USE_SUPERSLAB": "0"},
    "reserve of 64 MiB": {"HAKMEM_RESERVE": str(64 << 20)},
    "reserve of a byte": {"HAKMEM_RESERVE": "1"},
    "caches of fixed size": {"HAKMEM_ADAPTIVE_SIZING": "0", "HAKMEM_CACHE_FIRST": "256"},
    "caches of one block": {"HAKMEM_ADAPTIVE_SIZING": "0", "HAKMEM_CACHE_FIRST": "1"},
    "no room for caches": {"HAKMEM_CACHE_LIMIT": "0"},
    "caches filled beforehand": {"HAKMEM_PREWARM_TLS": "2"},
    "nothing kept": {"HAKMEM_PURGE_MS": "0", "HAKMEM_RETAIN": "0"},
}


class Option(NamedTuple):
    """A line of `options show`."""

    name: str
    env: str
    type: str
    when: str
    default: int
    least: int
    most: int
    value: int


def options(**env: str) -> dict[str, Option]:
    lines = [line.split() for line in succeed([program("options.c"), "show"], env=env).splitlines()]
    rows = [Option(name, env_name, kind, when, *map(int, rest)) for name, env_name, kind, when, *rest in lines]
    return {row.name: row for row in rows}


@cache
def model_by_default(seed: int) -> str:
    return succeed([program("model.c", "-O2"), seed, 30000, 200])


@pytest.mark.parametrize("case", ["table", "every_size", "owners", "many_slabs"])
def test_classes(case: str) -> None:
    assert case in case_names("classes.c")
    succeed([program("classes.c"), case])


@pytest.mark.parametrize("seed", range(1, 5))
def test_random_operations_against_a_naive_model(seed: int) -> None:
    assert "sum" in model_by_default(seed)


@pytest.mark.parametrize("seed", [11, 12])
def test_counts_equal_the_programs_own(seed: int) -> None:
    succeed([program("model.c", "-O2"), seed, 30000, 200, "exact"])


@pytest.mark.parametrize("switch", [name for name in SWITCHES if name != "default"])
def test_a_switch_changes_no_contents(switch: str) -> None:
    assert succeed([program("model.c", "-O2"), 1, 30000, 200], env=SWITCHES[switch]) == model_by_default(1)


@pytest.mark.parametrize(
    "switch",
    [
        *("no thread caches", "no l2 caches", "one slab a superslab", "reserve of 64 MiB"),
        *("caches of one block", "no room for caches", "caches filled beforehand"),
    ],
)
def test_counts_are_exact_under_a_switch(switch: str) -> None:
    succeed([program("model.c", "-O2"), 13, 10000, 100, "exact"], env=SWITCHES[switch])


@pytest.mark.parametrize("switch", ["no thread caches", "one slab a superslab", "reserve of 64 MiB"])
def test_many_slabs_under_a_switch(switch: str) -> None:
    succeed([program("classes.c"), "many_slabs"], env=SWITCHES[switch])


@pytest.mark.parametrize("switch", ["no thread caches", "no caches, one by one", "reserve of 64 MiB", "nothing kept"])
def test_threads_under_a_switch(switch: str) -> None:
    succeed([program("threads.c"), "producers_and_consumers"], env=SWITCHES[switch])


def test_every_switch_is_an_option_and_takes_effect() -> None:
    default = options()
    for env in SWITCHES.values():
        changed = {row.env: row.value for row in options(**env).values()}
        for variable, value in env.items():
            assert changed[variable] == int(value)
    assert all(row.value == row.default for row in default.values())
    assert all(row.env == "HAKMEM_" + row.name.upper() for row in default.values())


def test_options_are_bounded_and_kept() -> None:
    succeed([program("options.c"), "set_and_get"])


@pytest.mark.parametrize("tier", ["tiny", "l2", "l25"])
def test_a_tier_without_caches_caches_nothing(tier: str) -> None:
    for line in succeed([program("classes.c"), "show"], env={f"HAKMEM_TLS_{tier.upper()}": "0"}).splitlines():
        _, of, _, most, cached = line.split()
        assert (int(most) == 0) == (of == tier), line
        assert of != tier or int(cached) == 0, line


@pytest.mark.parametrize(
    "env",
    [{"HAKMEM_PURGE_MS": "soon"}, {"HAKMEM_PURGE_MS": "-5"}, {"HAKMEM_RETAIN": "9" * 40}, {"HAKMEM_ENABLE_TLS": "7"}],
    ids=str,
)
def test_a_bad_value_is_named_and_the_default_used(env: dict[str, str]) -> None:
    (variable,) = env
    done = run([program("options.c"), "show"], env=env)
    assert done.returncode == 0
    assert variable in text(done.stderr)
    assert len(done.stderr.splitlines()) == 1, text(done.stderr)
    row = next(line.split() for line in text(done.stdout).splitlines() if variable in line)
    assert row[4] == row[7]


@pytest.mark.parametrize(("limit_mib", "wanted_mib"), [(1024, 500), (300, 120), (150, 50)])
def test_out_of_memory_is_null_and_passes(limit_mib: int, wanted_mib: int) -> None:
    command: list[Argument] = [program("oom.c", "-O2"), wanted_mib]
    assert succeed(command, limit_kib=limit_mib * 1024) == "recovered\n"


@pytest.mark.parametrize(("switch", "wanted_mib"), [("no thread caches", 150), ("one slab a superslab", 2)])
def test_out_of_memory_under_a_switch(switch: str, wanted_mib: int) -> None:
    command: list[Argument] = [program("oom.c", "-O2"), wanted_mib]
    assert succeed(command, limit_kib=400 * 1024, env=SWITCHES[switch]) == "recovered\n"


def test_programs_start_within_a_small_address_space() -> None:
    command = [need("perl"), "-e", 'my %h; $h{$_} = "x" x $_ for 1..3000; print scalar(keys %h)']
    assert succeed(command, limit_kib=100 * 1024) == "3000"
