"""Every allocation function of libc and every operator new and delete keeps its contract, down to the edge cases."""

from __future__ import annotations

import pytest
from _helpers import case_names, program, run, succeed, text

SURFACE = case_names("libc_surface.c")
OPERATORS = case_names("new_delete.cc")


@pytest.mark.parametrize("case", [name for name in SURFACE if name != "statistics_calls"])
def test_libc(case: str) -> None:
    succeed([program("libc_surface.c"), case])


def test_libc_statistics_calls() -> None:
    done = run([program("libc_surface.c"), "statistics_calls"])
    assert done.returncode == 0, text(done.stderr)
    assert done.stderr, "malloc_stats writes to stderr"


@pytest.mark.parametrize("case", OPERATORS)
def test_new_and_delete(case: str) -> None:
    succeed([program("new_delete.cc"), case])


@pytest.mark.parametrize("case", ["plain", "nothrow", "expressions", "thread_local_destructors"])
def test_new_and_delete_with_a_static_cxx_library(case: str) -> None:
    succeed([program("new_delete.cc", "-static-libstdc++", "-static-libgcc"), case])
