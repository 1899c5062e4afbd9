"""why() names what made RSS high, its parts add up to RSS, and what it expects is what then comes back."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from _helpers import environment, library, program

import hakmem

RETAIN = {"RETAIN": "1G", "PURGE_MS": "3600000"}
THEIRS = "not hakmem's: "


class Made:
    """A case of why.c that has come to where it waits."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.pid = process, process.pid
        self.wait()

    def wait(self) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == b"ready\n"

    def undo(self) -> None:
        """The program takes its cause away."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        self.wait()

    def trim(self) -> int:
        return hakmem._Process(self.pid).ask("trim")

    def rss(self) -> int:
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="utf-8")
        return int(re.search(r"^Rss:\s+(\d+) kB", rollup, re.MULTILINE)[1]) << 10


@contextlib.contextmanager
def made(case: str, **options: object) -> Iterator[Made]:
    chosen = {f"HAKMEM_{name}": str(value) for name, value in {"STATS_PAGE": 2, **options}.items()}
    env = environment({**chosen, "LD_PRELOAD": str(library())})
    command = [str(program("why.c")), case]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Made(process)
        finally:
            process.kill()


def bytes_of(reasons: hakmem.Why, part: str) -> int:
    return next(row.bytes for row in reasons.parts if row.part == part)


def adds_up(reasons: hakmem.Why) -> None:
    assert sum(part.bytes for part in reasons.parts) == reasons.rss
    assert all(part.bytes >= 0 for part in reasons.parts if part.part != "changed meanwhile")
    assert list(reasons.advice) == sorted(reasons.advice, key=lambda advice: -advice.bytes)


def near(expected: int, came: int) -> None:
    assert abs(expected - came) <= 0.15 * came, (expected, came)


@pytest.mark.parametrize(
    ("case", "cause", "options"),
    [
        ("live", "live blocks", {}),
        ("dense", "free in slabs", {}),
        ("mapped", THEIRS + "anonymous mappings", {}),
        ("stacks", THEIRS + "thread stacks", {}),
        ("freed", "free", RETAIN),
        ("whales", "kept whales", RETAIN),
    ],
)
def test_the_first_cause_is_the_made_one_and_it_comes_back(case: str, cause: str, options: dict[str, str]) -> None:
    with made(case, **options) as process:
        reasons = hakmem.why(process.pid)
        adds_up(reasons)
        before = process.rss()
        assert reasons.rss == before
        assert reasons.advice[0].cause == cause
        if "hakmem trim" not in reasons.advice[0].do:
            process.undo()
        process.trim()
        near(reasons.advice[0].bytes, before - process.rss())
        assert hakmem.why(process.pid).advice[0].bytes < reasons.advice[0].bytes / 4


def test_of_slabs_that_few_blocks_hold_trim_gives_back_some_and_freeing_these_the_rest() -> None:
    with made("sparse") as process:
        reasons, before = hakmem.why(process.pid), process.rss()
        adds_up(reasons)
        held, trimmed = (row for row in reasons.advice if row.cause == "free in slabs")
        slabs = next(row for row in reasons.slabs if row.block_size == 160)
        assert reasons.advice[0] == held
        assert re.search(r"160 B \(2,\d\d\d blocks in \d+ of \d+ slabs\): a rule lifetime=long", held.do)
        assert slabs.under_5 > 0.9 * slabs.slabs > 600
        process.trim()
        after = process.rss()
        near(trimmed.bytes, before - after)
        process.undo()
        process.trim()
        near(held.bytes, after - process.rss())


def test_pages_without_a_block_in_slabs_are_what_trim_returns(python) -> None:
    done = python("""
import ctypes, hakmem
blocks = [hakmem.malloc(160) for _ in range(300000)]
for block in blocks:
    ctypes.memset(block, 1, 160)
for index, block in enumerate(blocks[:100000]):  # so few of all that no slab is looked through
    if index % 128:
        hakmem.free(block)
held = [advice for advice in hakmem.why().advice if advice.cause == "free in slabs" and "trim" in advice.do]
before = hakmem.why().rss
hakmem.trim()
print(held[0].bytes, before - hakmem.why().rss)
""")
    expected, came = map(int, done.stdout.split())
    assert expected > 4 << 20
    near(expected, came)


def test_pages_that_no_block_of_a_slab_has_used_yet_are_not_promised(python) -> None:
    done = python(
        """
import ctypes, hakmem
blocks = [hakmem.malloc(1000) for _ in range(60000)]
for block in blocks:
    ctypes.memset(block, 1, 1000)
for block in blocks:
    hakmem.free(block)
for row in hakmem.class_table():  # slabs of memory that others have used
    if row.tier == "tiny":
        hakmem.malloc(row.size)
slabs = hakmem.why().slabs
print(sum(row.free_bytes for row in slabs), sum(row.trim_bytes for row in slabs))
""",
        HAKMEM_RETAIN="1G",
        HAKMEM_PURGE_MS="3600000",
    )
    free, trimmed = map(int, done.stdout.split())
    assert trimmed < free / 10 > 100_000


def test_the_parts_of_a_busy_process_add_up() -> None:
    with made("busy", PURGE_MS=0) as process:
        for _ in range(20):
            adds_up(hakmem.why(process.pid))


@pytest.mark.parametrize(
    ("case", "settings", "cause", "option"),
    [
        ("caches", {}, "cached in stacks", "tls_l2"),
        ("spread", {"TLS_TINY": 0}, "free in own slabs", "enable_tls"),  # the slab that each thread has of a class
    ],
)
def test_what_the_named_option_saves_is_what_it_was_said_to(
    case: str, settings: dict[str, int], cause: str, option: str
) -> None:
    with made(case, **settings) as process:
        reasons = hakmem.why(process.pid)
        adds_up(reasons)
        process.trim()
        before = process.rss()
    first = reasons.advice[0]
    assert (first.cause, f"{option}=0" in first.do) == (cause, True)
    with made(case, **{option.upper(): 0}) as process:
        process.trim()
        near(first.bytes, before - process.rss())


def test_what_huge_pages_bring_that_nobody_used_is_what_the_option_saves() -> None:
    with made("huge", HUGE_PAGES=1) as process:
        reasons, before = hakmem.why(process.pid), process.rss()
        adds_up(reasons)
        if not re.search(r"^AnonHugePages:\s+[1-9]", Path(f"/proc/{process.pid}/smaps").read_text(), re.MULTILINE):
            pytest.skip("the system gives no huge pages (/sys/kernel/mm/transparent_hugepage/enabled)")
        if any("never used is not known" in note for note in reasons.notes):
            pytest.skip("the system does not let a process read its child's memory (kernel.yama.ptrace_scope)")
    assert (reasons.advice[0].cause, reasons.advice[0].do) == ("huge pages", "huge_pages=0 at the start")
    with made("huge", HUGE_PAGES=0) as process:
        near(reasons.advice[0].bytes, before - process.rss())


def test_memory_that_was_only_read_is_not_taken_for_resident() -> None:
    with made("zeros") as process:
        reasons = hakmem.why(process.pid)
        adds_up(reasons)
        assert bytes_of(reasons, "live blocks") < 1 << 20
        assert bytes_of(reasons, "changed meanwhile") == 0
        assert reasons.rounding_bytes < 1 << 20


def test_a_sleeping_process_is_judged_by_its_last_counters_and_that_is_said() -> None:
    with made("rested", STATS_PAGE=1) as process:
        reasons = hakmem.why(process.pid)
        adds_up(reasons)
        assert reasons.notes[0].startswith("Counters, as they were published last")
        assert not reasons.slabs
        assert reasons.advice[0].cause == "live blocks"
        assert bytes_of(reasons, "live blocks") > reasons.rss / 2


def test_where_the_system_hides_what_is_resident_counters_bound_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pagemap: int) -> None:
        raise PermissionError(1, "Operation not permitted", "pagemap")

    with made("live") as process:
        exact = hakmem.why(process.pid)
        monkeypatch.setattr(hakmem, "_page_counter", refuse)
        reasons = hakmem.why(process.pid)
    adds_up(reasons)
    assert "does not show it" in reasons.notes[0]
    near(bytes_of(reasons, "live blocks"), bytes_of(exact, "live blocks"))
    near(bytes_of(reasons, "metadata"), bytes_of(exact, "metadata"))


def test_sites_that_hold_memory_are_named_where_they_are_captured() -> None:
    with made("live", SITES=1) as process:
        assert re.search(r"why-c\+0x[0-9a-f]+ 4\d\.\d MiB", hakmem.why(process.pid).advice[0].do)
    with made("sparse", SITES=1) as process:
        sparse = next(advice for advice in hakmem.why(process.pid).advice if advice.cause == "free in slabs")
        assert re.search(r"160 B \(.* slabs, of why-c\+0x", sparse.do)


def test_mappings_hold_all_metadata_and_nothing_else(python) -> None:
    for options in ({}, {"HAKMEM_SITES": "1"}, {"HAKMEM_USE_REGISTRY": "1"}):
        done = python(
            """
import hakmem, threading
blocks = [hakmem.alloc_at(2 << 20, site) for site in range(1, 1000)]
for block in blocks:
    hakmem.free(block)
gate = threading.Barrier(21)
def work():
    hakmem.malloc(100)
    gate.wait()
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(20)]
for thread in threads: thread.start()
gate.wait()
rows = hakmem._Here().rows("mapping")
print(sum(row.total_size for row in rows if row.holds == "metadata"), hakmem.memory_stats()["metadata_bytes"])
gate.wait()
""",
            **options,
        )
        listed, counted = map(int, done.stdout.split())
        assert listed == counted > 1 << 20


def test_the_process_itself_can_be_asked() -> None:
    reasons = hakmem.why()
    adds_up(reasons)
    assert isinstance(reasons, hakmem.Why)
    assert all(isinstance(part, hakmem.RssPart) for part in reasons.parts)
    assert all(isinstance(advice, hakmem.Advice) for advice in reasons.advice)
    assert all(isinstance(row, hakmem.ClassSlabs) and row.slabs for row in reasons.slabs)
    assert str(reasons) == reasons.text()
    assert reasons._repr_html_().count("<table>") >= 2


def test_the_command_prints_tables_or_numbers(run) -> None:
    with made("whales", **RETAIN) as process:
        text = run(sys.executable, "-m", "hakmem", "why", process.pid).stdout
        data = json.loads(run(sys.executable, "-m", "hakmem", "why", process.pid, "--fmt", "json").stdout)
    assert re.search(r"1 +kept whales +48 MiB +python -m hakmem trim \d+ now", text)
    assert "at most" in text.splitlines()[-1]
    assert sum(part["bytes"] for part in data["parts"]) == data["rss"]
    assert data["advice"][0]["cause"] == "kept whales"


def test_who_cannot_be_asked_is_told_in_one_line(run) -> None:
    with pytest.raises(hakmem.HakmemError, match="there is no process 4194305"):
        hakmem.why(4194305)
    done = run(sys.executable, "-m", "hakmem", "why", 1, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"hakmem: why: .*process 1\b.*\n", done.stderr)


def test_other_mappings_are_told_apart_by_their_path_and_neighbour() -> None:
    area = hakmem._Area
    none, guard = area(0, 0, "", "", ""), area(4096, 8192, "---p", "", "")
    lib, ours = area(4096, 8192, "rw-p", "/lib/libc.so.6", ""), area(4096, 8 << 20, "---p", "", "")
    for path, mode, before, part in [
        ("", "rw-p", none, "anonymous mappings"),
        ("[anon: glibc: malloc arena]", "rw-p", none, "anonymous mappings"),
        ("", "rw-p", guard, "thread stacks"),
        ("", "rw-p", ours, "anonymous mappings"),
        ("", "rw-p", lib, "code and files"),
        ("/lib/libc.so.6", "r-xp", none, "code and files"),
        ("[vdso]", "r-xp", none, "code and files"),
        ("[heap]", "rw-p", lib, "brk heap"),
        ("[stack]", "rw-p", none, "thread stacks"),
        ("/memfd:x (deleted)", "rw-s", none, "shared memory"),
        ("/dev/shm/x", "rw-s", none, "shared memory"),
    ]:
        start = before.end or 8192
        assert hakmem._part_of(area(start, 1 << 30, mode, path, ""), before) == THEIRS + part, path
    assert hakmem._part_of(area(8192, 1 << 30, "rw-s", "/memfd:hakmem-stats (deleted)", ""), none) == "metadata"


def test_a_segment_that_changed_hands_while_it_was_listed_counts_once() -> None:
    twice = ((65536, 65536), (65536, 65536), (0, 4096))
    rows = [SimpleNamespace(address=start, total_size=size) for start, size in twice]
    assert [piece[:2] for piece in hakmem._pieces([], [], rows)] == [(0, 4096), (65536, 131072)]
