"""Freeing or growing what is not a live block ends the process, with a message that names pointer and fault."""

from __future__ import annotations

import re
import signal

import pytest
from _helpers import case_names, program, run, succeed, text

CASES = case_names("misuse.c")


def check_fault(case: str, **env: str) -> None:
    done = run([program("misuse.c"), case], env=env)
    pointer, reasons = text(done.stdout).strip().split(" ", 1)
    said = text(done.stderr)
    assert done.returncode == -signal.SIGABRT, f"ended with {done.returncode}: {said}"
    match = re.fullmatch(r"hakmem: (?:free|realloc)\((0x[0-9a-f]+)\): (.+?)(?: \(.+\))?\n", said)
    assert match, said
    assert match[1] == pointer
    assert match[2] in reasons.split("|")


@pytest.mark.parametrize("case", CASES)
def test_a_fault_ends_the_process(case: str) -> None:
    check_fault(case)


@pytest.mark.parametrize("case", ["foreign_stack", "wild_non_canonical", "wild_in_range", "interior_2_mib"])
def test_a_fault_ends_the_process_without_thread_caches(case: str) -> None:
    check_fault(case, HAKMEM_ENABLE_TLS="0")


@pytest.mark.parametrize("case", ["double_free_top_64", "interior_tiny", "interior_l25", "double_free_256_kib"])
def test_without_thread_caches_every_fault_shows_at_once(case: str) -> None:
    check_fault(case, HAKMEM_ENABLE_TLS="0")


def test_the_checked_calls_return_the_fault_and_the_process_goes_on() -> None:
    succeed([program("checked.c")])


def test_the_checked_calls_without_thread_caches() -> None:
    succeed([program("checked.c")], env={"HAKMEM_ENABLE_TLS": "0"})
