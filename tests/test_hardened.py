"""Programs without a fault do under the hardened library, at both levels, what they do without: no false alarm."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Optional

import pytest
from _helpers import Argument, build, case_names, cxx, need, program, run, succeed, text
from test_tsan import OPTIONS, stress

LEVELS = ["1", "2"]
CONTENTS = ["producers_and_consumers", "free_only_thread", "threads_hand_blocks_on", "thread_data_destructors"]
FORKS = ["from_threads", "memory_is_separate", "programs_from_threads"]
SLOW = ["calloc_zero"]  # the hardened library treats it as it does the rest


@cache
def hardened() -> Path:
    return build.build("hardened", quiet=True)


def succeed_at(level: str, command: list[Argument], env: Optional[dict[str, str]] = None, **options: bool) -> str:
    return succeed(command, preload=False, first=hardened(), env={"HAKMEM_HARDENED": level, **(env or {})}, **options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("switch", ["", "HAKMEM_ENABLE_TLS", "HAKMEM_TINY_USE_SUPERSLAB"])
def test_random_operations_against_a_naive_model(switch: str, level: str) -> None:
    command: list[Argument] = [program("model.c", "-O2"), 1, 10000, 100]
    env = {switch: "0"} if switch else {}
    assert succeed_at(level, command, env) == succeed(command)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [name for name in case_names("libc_surface.c") if name not in SLOW])
def test_libc(case: str, level: str) -> None:
    succeed_at(level, [program("libc_surface.c"), case], quiet=case != "statistics_calls")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", case_names("new_delete.cc"))
def test_new_and_delete(case: str, level: str) -> None:
    succeed_at(level, [program("new_delete.cc"), case])


@pytest.mark.parametrize("level", LEVELS)
def test_cxx_containers(level: str) -> None:
    succeed_at(level, [program("containers.cc")])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CONTENTS)
def test_threads(case: str, level: str) -> None:
    succeed_at(level, [program("threads.c"), case])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", FORKS)
def test_fork(case: str, level: str) -> None:
    succeed_at(level, [program("fork.c"), case])
