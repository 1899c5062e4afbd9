"""Whichever thread frees a block, sleeps, dies or hands its blocks on, contents survive and memory stays bounded."""

from __future__ import annotations

from typing import Any

import pytest
from _helpers import case_names, program, succeed

CASES = case_names("threads.c")
SHARED = ("-shared", "-fPIC")


@pytest.mark.parametrize("case", CASES)
def test_threads(case: str) -> None:
    succeed([program("threads.c"), case])


@pytest.mark.parametrize("threads", [4, 16])
def test_ten_of_ten_runs(threads: int) -> None:
    for _ in range(10):
        assert succeed([program("threads.c"), "threads_hand_blocks_on", threads]) == f"{threads} threads\n"


@pytest.mark.soak
def test_100_000_short_lived_threads() -> None:
    succeed([program("threads.c"), "short_lived_threads", 100_000], timeout=600)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_preloaded_library_allocates_in_its_constructor(order: str) -> None:
    early = program("early.c", *SHARED)
    around: dict[str, Any] = {"first": early} if order == "before" else {"last": early}
    succeed([program("threads.c"), "thread_data_destructors"], **around)


@pytest.mark.parametrize("case", case_names("lifecycle.c"))
def test_lifecycle(case: str) -> None:
    out = succeed([program("lifecycle.c"), case, program("late.c", *SHARED)])
    assert out == ("outlived main\n" if case == "main_ends_first" else "")
