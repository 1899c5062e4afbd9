"""A program that does everything at once loses no byte and keeps its RSS bounded, and the soak notices if one does."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from _helpers import ROOT, environment, succeed

SOAK = [sys.executable, ROOT / "tests" / "soak.py"]
SHORT = "--minutes 0.03 --cycle 0.6 --live-mb 16 --patience 60".split()
EXPECTED = {
    "corrupt": r"FAULT bytes cycle \d+, \w+: [\w ]+: 1 bytes of the \d+ at 0x\w+ are wrong, from byte \d+ on",
    "zero": r"FAULT zero cycle \d+, \w+: calloc of \d+ at 0x\w+ is not all zero",
    "lose": r"FAULT blocks cycle \d+, \w+: live_blocks is (\d+), ours \d+",
    "leak": r"FAULT blocks cycle \d+, \w+: live_bytes is \d+, ours \d+",
    "rss": r"FAULT rss cycle \d+, idle: RSS \d+ KiB, bound \(own\) \d+ KiB",
    "child": r"FAULT child cycle \d+, \w+: a child ended with status 0x500",
    "hang": r"FAULT silent for 4 s: it hangs",
}


def soak(*arguments: object, timeout: float = 120) -> str:
    return succeed([*SOAK, *arguments], preload=False, timeout=timeout)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in [*SOAK, *arguments]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


@pytest.fixture(scope="module")
def broken() -> Iterator[dict[str, Any]]:
    """Runs with one thing broken each, side by side, as they mostly wait."""
    patience = {"hang": ["--patience", 4]}
    runs = {what: start(*SHORT, *patience.get(what, []), "--sabotage", what) for what in EXPECTED}
    yield runs
    for process in runs.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("what", EXPECTED)
def test_what_is_broken_is_found(broken: dict[str, Any], what: str) -> None:
    said, _ = broken[what].communicate(timeout=120)
    assert re.search(EXPECTED[what], said), said
    assert re.search(r"^[\d,]+ faults$", said, re.MULTILINE), said
    assert broken[what].returncode == 1, said


def test_a_short_soak() -> None:
    said = soak("--minutes", 0.12, "--cycle", 2)
    assert re.search(r"RSS [\d.]+ MB at most\nbound .*(\n(load|idle|trim|own) .* MB){4}\nno fault\n$", said), said
    operations = re.search(r"([\d,]+) operations, .* (\d+) forks, (\d+) trims, .* (\d+) cycles", said)
    assert operations, said
    assert all(int(count.replace(",", "")) > 0 for count in operations.groups()), said


def test_an_interrupt_ends_it_with_a_summary_and_leaves_nothing_running() -> None:
    process = start("--minutes", 5)
    assert process.stdout
    first = process.stdout.readline() + process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    said = first + process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert said.endswith("interrupted; no fault\n"), said
    assert not psutil.wait_procs(children, timeout=10)[1], said


def test_a_variant_without_a_malloc_is_refused() -> None:
    process = start("--variant", "asan")
    assert "no malloc of its own" in process.communicate(timeout=60)[0]
    assert process.returncode == 2


@pytest.mark.soak
@pytest.mark.parametrize("variant", ["release", "debug"])
def test_ten_minutes(variant: str) -> None:
    soak("--minutes", 10, "--variant", variant, timeout=900)
