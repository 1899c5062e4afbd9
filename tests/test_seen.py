"""What a process shows of itself is read as it is or refused in one line, and a command is obeyed in time or never."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import fcntl
import io
import itertools
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from datetime import datetime
from pathlib import Path

import pytest
from _helpers import ROOT, environment, library, program
from _shown import shown

import hakmem

WORKER = """
import os, sys
kept = [bytes(n) for n in range(600, 60000, 100)]
if sys.argv[1:]:
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(50):
        [bytes(n) for n in range(600, 40000, 500)]
    print("worked", flush=True)
"""
BUSY = WORKER.replace("for line in sys.stdin:", "while True:").replace('print("worked", flush=True)', "pass")
NOBODY = 65534
AS_USER = """
import os, sys, hakmem, tabulate
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.exit(hakmem.main(sys.argv[2:]))
"""
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@contextlib.contextmanager
def worker(*arguments, source=WORKER, stats_page="1", preload=True):
    """A Python program on hakmem; it allocates when it is told to."""
    libraries = {"LD_PRELOAD": str(library())} if preload else {}
    process = subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        env=environment({**libraries, "HAKMEM_STATS_PAGE": stats_page}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def work(process):
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "worked\n"


@pytest.fixture(scope="module")
def busy():
    with worker(source=BUSY) as process:
        yield process


def cli(*arguments, user=None, check=0):
    """The command line, as another user in a process of its own; returns what it wrote, if it is to fail to stderr."""
    if user is None and arguments[0] != "ps":  # which leaves itself out
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = hakmem.main([str(argument) for argument in arguments])
        done = subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())
    else:
        command = ["-m", "hakmem"] if user is None else ["-c", AS_USER, user]
        done = subprocess.run(
            [sys.executable, *map(str, (*command, *arguments))],
            env=environment({"PYTHONPATH": str(ROOT)}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == check, done.stderr
    assert bool(done.stderr) == bool(check), done.stderr
    if check:
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not done.stdout
    return done.stderr if check else done.stdout


def test_each_view_of_a_process_is_shown(busy):
    for view in hakmem._VIEWS:
        text = hakmem.report(view, pid=busy.pid)
        assert text.startswith(f"hakmem {hakmem.__version__} {hakmem.mode().variant}, process {busy.pid} (python"), text
        shown = json.loads(hakmem.report(view, "json", pid=busy.pid))
        own = json.loads(hakmem.report(view, "json"))
        assert shown["mode"]["pid"] == busy.pid
        assert set(own["tables"]) <= set(shown["tables"]) | {"decisions"}
        for title, rows in shown["tables"].items():
            for row, here in zip(rows, own["tables"].get(title, [])):
                assert list(row) == list(here), (view, title)


def test_the_command_line_shows_a_view_of_a_process(busy):
    assert "free_dirty_bytes" in cli("report", busy.pid, "pools")
    rows = json.loads(cli("report", busy.pid, "summary", "--fmt", "json"))["tables"]["counters"]
    values = {row["counter"]: row["value"] for row in rows}
    assert values["live_bytes"] > 10 << 20
    assert values["process_rss"] > values["live_bytes"]


# ---- while threads run


@pytest.mark.parametrize("threads", [4, 16])
def test_the_laws_hold_while_threads_run(threads):
    """What the counters say never falls does not; nothing is less than none; what is off is what moved meanwhile."""
    command = [program("live_busy.c"), str(threads), "without trim and fork"]
    settings = environment({"HAKMEM_STATS_PAGE": "1", "LD_PRELOAD": str(library())})
    with subprocess.Popen(command, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        process = hakmem._Process(int(busy.stdout.readline()), fresh=0)
        fields = process.layouts["stats"].fields
        rises = [field.name for field in fields if "rises" in field.view.split()]
        terms = [field.name for field in fields if "committed" in field.view.split()]
        assert len(rises) > 40
        assert len(terms) > 8
        seen, until = [], time.monotonic() + 1.5
        while time.monotonic() < until or (len(seen) < 3 and time.monotonic() < until + 60):
            head, rows = process.page.read(timeout=20)
            if not seen or head.published != seen[-1][0]:
                seen.append((head.published, rows["stats"][0], head.at_ns))
        busy.stdin.close()
    for (_, before, earlier), (_, now, later) in zip(seen, seen[1:]):
        assert [name for name in rises if getattr(now, name) < getattr(before, name)] == []
        assert max(getattr(now, name) for name in terms) < 1 << 50
        off = abs(now.committed_bytes - sum(getattr(now, name) for name in terms))
        moved = now.alloc_bytes + now.freed_bytes - before.alloc_bytes - before.freed_bytes
        assert off <= moved
        if now.read_us <= 300:  # nothing had to be waited for: a few slabs, and what moves in that time at that pace
            assert off <= (4 << 20) + moved * now.read_us * 1000 // (later - earlier), now


HALF_FREED = """
import sys
kept = [bytes(700) for _ in range(200_000)]
del kept[::2]
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_a_program_that_sleeps_shows_is_near_what_it_has():
    """A slow machine may not publish in time: it gets ten tries."""
    for _ in range(10):
        with worker(source=HALF_FREED) as process:
            seen = hakmem._Process(process.pid, fresh=0).stats()
        if seen["live_bytes"] < 110 << 20:
            break
    assert 70 << 20 < seen["live_bytes"] < 110 << 20  # 75 MiB; it had 149


# ---- pages of other versions, and damaged ones
HEAD = struct.Struct("=8sIIII12Q")
AT = {name: 8 + 16 + 8 * i for i, name in enumerate(hakmem._Head._fields[5:])}


def page_of(process):
    """The bytes of a page that nobody is writing."""
    path = hakmem._shown_files(process.pid, "stats")[0]
    os.kill(process.pid, signal.SIGSTOP)
    try:
        for _ in range(1000):
            data = Path(path).read_bytes()
            if not struct.unpack_from("=Q", data, AT["seq"])[0] % 2:
                return data
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.001)
            os.kill(process.pid, signal.SIGSTOP)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    pytest.fail("it is always publishing")


@pytest.fixture(scope="module")
def page():
    """A page of this process number: whoever shows it, is seen."""
    with worker() as process:
        work(process)
        data = bytearray(page_of(process))
    struct.pack_into("=I", data, 16, os.getpid())
    return bytes(data)


@contextlib.contextmanager
def showing(data, seals=fcntl.F_SEAL_SHRINK):
    """Have this process show a page."""
    file = os.memfd_create("hakmem-stats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(file, data)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        yield os.getpid()
    finally:
        os.close(file)


def taken_apart(data):
    """The sections of a page by name: most rows, counts, fields (name, kind, unit, view, help), rows; and its texts."""
    head = hakmem._Head(*HEAD.unpack_from(data))
    lines = data[head.text : head.text + head.text_len].decode().splitlines()
    counts = struct.unpack_from(f"={2 * head.sections}Q", data, head.counts)
    sections = {}
    for line in lines:
        word, *words = line.split("\t")
        if word == "record":
            name, size, offset, most = words[0], *map(int, words[1:])
            n, there = counts[2 * len(sections) : 2 * len(sections) + 2]
            if n > most or size * most > len(data):
                raise ValueError("more rows than there is room for")
            raw = [data[offset + i * size : offset + (i + 1) * size] for i in range(n)]
            sections[name] = (most, there, fields := [], rows := [{} for _ in raw])
        elif word == "field":
            field, kind, unit, view, place, text = words
            fields.append((field, kind, unit, view, text))
            for row, bytes_of in zip(rows, raw):
                row[field] = struct.unpack_from("=Q" if kind == "z" else f"={kind}", bytes_of, int(place))[0]
    return head, sections, data[head.words : head.words + head.words_len]


def put_together(head, sections, words, version="9.9.9", abi=99, gap=0):
    """A page of another version, with each row gap bytes longer than needed."""
    lines, layout = [f"hakmem\t{version}\trelease\tand more", "remark\tof a later version"], []
    at = start = (
        sum(len("".join(field)) + 40 for section in sections.values() for field in section[2]) + len(words) + 2048
    )
    at = start = start + 1024 * bool(gap) & ~7
    for name, (most, _there, fields, _rows) in sections.items():
        size = 8 * len(fields) + gap
        lines.append(f"record\t{name}\t{size}\t{at}\t{most}\tand more")
        for index, (field, kind, unit, view, text) in enumerate(fields):
            lines.append(f"field\t{field}\t{kind}\t{unit}\t{view}\t{gap + 8 * index}\t{text}\tand more")
        layout.append((at, size))
        at += size * most
    text = "\n".join(lines).encode() + b"\n"
    data = bytearray(at)
    total, counts = 0, []
    for (place, size), (_most, there, fields, rows) in zip(layout, sections.values()):
        counts += [len(rows), there]
        for number, row in enumerate(rows):
            for index, (field, kind, *_rest) in enumerate(fields):
                form = "q" if kind == "q" else "d" if kind == "d" else "Q"
                struct.pack_into(f"={form}", data, place + number * size + gap + 8 * index, row[field])
        total += sum(memoryview(data[place : place + len(rows) * size]).cast("Q"))
    texts = text + words
    assert 1024 + len(texts) <= start
    data[1024 : 1024 + len(texts)] = texts
    struct.pack_into(f"={len(counts)}Q", data, 512, *counts)
    total = (total + sum(counts)) % (1 << 64)
    new = head._replace(abi=abi, size=at, text=1024, text_len=len(text))
    new = new._replace(words=1024 + len(text), words_len=len(words), counts=512, sections=len(sections), sum=total)
    HEAD.pack_into(data, 0, *new)
    return bytes(data)


def test_what_both_versions_know_is_read(page):
    head, sections, words = taken_apart(page)
    with showing(page) as pid:
        before = hakmem._Process(pid, fresh=0)
        then = {kind: before.rows(kind) for kind in sections}
        texts = {view: hakmem.report(view, "json", pid) for view in ("summary", "pools", "classes", "config")}
    rng = random.Random(6)
    newer = {}
    for name, (most, there, fields, rows) in sections.items():
        more = [*fields, ("of_later", "d", "ms", "", "a kind that nobody knows"), ("more", "Q", "", "", "new")]
        rng.shuffle(more)
        newer[name] = most, there, more, [{**row, "of_later": 0.5, "more": 7} for row in rows]
    newer = dict(rng.sample(sorted(newer.items()), len(newer)))
    newer["later"] = 3, 1, [("what", "Q", "", "", "unknown")], [{"what": 1}]
    with showing(put_together(head, newer, words, gap=16)) as pid:
        seen = hakmem._Process(pid, fresh=0)
        for kind, rows in then.items():
            assert len(seen.rows(kind)) == len(rows)
            for row, was in zip(seen.rows(kind), rows):
                assert {**row._asdict(), "more": 7} == {**was._asdict(), "more": 7}, kind
        assert "9.9.9" in seen.heading
        for view, text in texts.items():
            tables = json.loads(hakmem.report(view, "json", pid))["tables"]
            for title, rows in json.loads(text)["tables"].items():
                key = {"counters": "counter", "classes": "index", "committed": "part"}.get(title, "name")
                found = {row[key]: row for row in tables[title]}
                for was in rows:
                    if was[key] != "process_rss":
                        assert {**was, **found[was[key]]} == {**found[was[key]], **was}, (view, title)


def test_of_an_older_version_what_it_has_is_shown_and_the_rest_refused(page):
    head, sections, words = taken_apart(page)
    older = {kind: sections[kind] for kind in ("stats", "class", "tier", "option", "setting")}
    missing = {"cached_bytes", "shared_locks", "misses", "use"}
    for name, (most, there, fields, rows) in older.items():
        older[name] = most, there, [field for field in fields if field[0] not in missing], rows
    with showing(put_together(head, older, words, "0.0.1", 1)) as pid:
        assert "live_bytes" in hakmem.report("pools", pid=pid)
        assert "0.0.1" in hakmem.report("summary", pid=pid)
        assert "purge_ms" in hakmem.report("config", pid=pid)
        for view in ("threads", "locks", "shards", "ace"):
            with pytest.raises(hakmem.HakmemError, match=f"it has no view '{view}'"):
                hakmem.report(view, pid=pid)
        assert "0.0.1 release" in cli("top", pid, "--interval", "0.01")
        assert " 0.0.1 release " in cli("ps")
        line = cli("watch", pid, "-n", "1").splitlines()
        assert "live_bytes" in line[0]
        assert "cached_bytes" not in line[0]
        assert "cannot be" not in cli("set", pid, "purge_ms=soon", check=1)
        assert "takes no commands" in cli("trim", pid, check=1)


def test_another_format_is_refused(page):
    data = bytearray(page)
    struct.pack_into("=I", data, 8, 2)
    with showing(data) as pid:
        assert "is not of a form that hakmem" in cli("report", pid, check=1)


def test_a_page_that_could_become_shorter_is_not_read(page):
    with showing(page, seals=0) as pid:
        assert "may change its size" in cli("top", pid, check=1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seq", 1, "does not finish what it is publishing; is it stopped"),
        ("sum", 1, "damaged: its sum is wrong"),
        ("text_len", 1 << 40, "cut off"),
        ("size", 1 << 40, "cut off"),
        ("sections", 3, "of 3 sections are described"),
        ("counts", 1 << 63, "cut off"),
    ],
)
def test_a_damaged_page_is_refused_in_one_line(page, field, value, message):
    data = bytearray(page)
    struct.pack_into("=Q", data, AT[field], value)
    with showing(data) as pid, pytest.raises(hakmem.HakmemError, match=message):
        hakmem._Process(pid, fresh=0)


def test_ps_says_of_a_damaged_page_what_is_wrong(page):
    data = bytearray(page)
    struct.pack_into("=Q", data, AT["seq"], 1)
    with showing(data) as pid:
        assert "does not finish what it is publishing; is it stopped?" in cli("report", pid, check=1)
        assert re.search(rf"{pid} .*does not finish", cli("ps"))


def test_control_characters_of_others_do_not_reach_the_terminal(page):
    with showing(page.replace(b"page_heap\0", b"p\x1b[2Jheap\0")) as pid:
        assert "p?[2Jheap" in cli("report", pid, "locks")


def mutate(rng, page):
    data = bytearray(page)
    text, words = struct.unpack_from("=QQ", data, AT["text"])
    places = [(0, HEAD.size), (text, text + words), (struct.unpack_from("=Q", data, AT["counts"])[0],) * 2]
    for _ in range(rng.choice((1, 1, 2, 8))):
        low, high = rng.choice([*places, (0, len(data))])
        at = rng.randrange(low, max(high, low + 200) - 8)
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice(b"\t\n\0 0129-zQqIx\xff")
        elif kind == 2:
            struct.pack_into(
                "=Q", data, at & ~7, rng.choice((0, 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, len(data)))
            )
        elif kind == 3:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at:at] = rng.choice((b"\t", b"\n", b"99999999999999", b"record\tx\t8\t0\t9999\n", b"\nfield\t"))
    if rng.random() < 0.3:
        try:  # so that not only the sum refuses it
            head = hakmem._Head(*HEAD.unpack_from(data))
            _head, sections, _words = taken_apart(bytes(data))
        except Exception:  # noqa: BLE001 (then it is of no form at all)
            return data
        total = 0
        lines = data[head.text : head.text + head.text_len].decode().splitlines()
        records = [line.split("\t") for line in lines if line.startswith("record\t")]
        for (_most, there, _fields, rows), words in zip(sections.values(), records):
            size, offset = int(words[2]), int(words[3])
            raw = data[offset : offset + size * len(rows)]
            total += len(rows) + there + sum(struct.unpack(f"={len(raw) // 8}Q", raw[: len(raw) // 8 * 8]))
        struct.pack_into("=Q", data, AT["sum"], total % (1 << 64))
    return data


def fuzz(page, times, seed, directory):
    """Returns how many were read, and how many refused."""
    rng, outcomes, path = random.Random(seed), [0, 0], str(directory / "page")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for number in range(times):
        os.pwrite(file, data := mutate(rng, page), 0)
        os.ftruncate(file, len(data))
        if number % 500 == 0:
            tracemalloc.start()
        began = time.process_time()
        try:
            hakmem._Page(path).read(timeout=0)
            outcomes[0] += 1
        except hakmem.HakmemError:
            outcomes[1] += 1
        except BaseException as error:
            (Path("/tmp") / "hakmem-page-that-failed").write_bytes(data)
            raise AssertionError(f"{number} of seed {seed}, in /tmp/hakmem-page-that-failed") from error
        if tracemalloc.is_tracing():
            assert tracemalloc.get_traced_memory()[1] < 30 * len(data) + (4 << 20)
            tracemalloc.stop()
        assert time.process_time() - began < 2, f"{number} of seed {seed}"
    os.close(file)
    return outcomes


def small(page):
    """The same with few rows and fields, so that most mutations hit something that is read."""
    head, sections, words = taken_apart(page)
    kept = {name: sections[name] for name in ("stats", "tier")}
    cut = {name: (len(rows), there, fields[:5], rows) for name, (_most, there, fields, rows) in kept.items()}
    data = bytearray(put_together(head, cut, words[:2048]))
    return bytes(data)


def test_no_mutation_of_a_page_does_more_than_be_refused(page, tmp_path):
    read, refused = fuzz(page, 500, 1, tmp_path)
    assert min(read, refused) > 50
    read, refused = fuzz(small(page), 19_500, 2, tmp_path)
    assert min(read, refused) > 2000


@pytest.mark.soak
def test_a_million_mutations(page, tmp_path):
    fuzz(page, 100_000, 3, tmp_path)
    fuzz(small(page), 900_000, 4, tmp_path)


# ---- refusals
ACTIONS = ["report", "top", "watch", "trim", "set"]


def refused(action, pid, **options):
    return cli(action, pid, *(["purge_ms=1000"] if action == "set" else []), check=1, **options)


@pytest.mark.parametrize("action", ACTIONS)
def test_whoever_cannot_be_seen_is_refused_in_one_line(action):
    assert "there is no process 99999999" in refused(action, 99999999)
    plain = subprocess.Popen(["sleep", "60"], env=environment())
    try:  # that has not yet its new name, perhaps
        assert re.search(r"process \d+ \(.*\) is not on hakmem", refused(action, plain.pid))
        plain.kill()
        os.waitid(os.P_PID, plain.pid, os.WEXITED | os.WNOWAIT)
        assert "has ended, and its parent has not taken notice yet" in refused(action, plain.pid)
    finally:
        plain.kill()
        plain.wait()


def test_a_process_on_hakmem_without_a_page_is_told_how_to_get_one():
    with worker(stats_page="0") as hidden:
        assert "is on hakmem, but cannot be seen: start it with HAKMEM_STATS_PAGE=1" in refused("top", hidden.pid)
        assert re.search(rf"{hidden.pid} .*no: start it with HAKMEM_STATS_PAGE=1", cli("ps"))


def test_a_thread_of_the_kernel_is_told_apart():
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text(errors="replace")
            if "VmSize" not in text and "State:\tZ" not in text and "State:\tX" not in text:
                assert "is part of the kernel" in refused("report", status.parent.name)
                return
    pytest.skip("no thread of the kernel is to be seen")


@AS_ROOT
def test_another_user_gets_one_clear_line(busy):
    me = hakmem._user(0)
    assert f"process {busy.pid} is {me}'s: only that user and root may look into it" in refused(
        "report", busy.pid, user=NOBODY
    )
    out = cli("ps", user=NOBODY)
    assert re.search(r"^not looked into, as only their users and root may: \d[\d,]*$", out, re.MULTILINE)
    assert not re.search(rf"^ *{busy.pid} ", out, re.MULTILINE)


@AS_ROOT
def test_a_process_that_has_changed_its_user_is_seen_by_root_alone():
    with worker(NOBODY) as dropped:
        assert "live_bytes" in cli("report", dropped.pid, "pools")
        assert f"only root may look into process {dropped.pid}: it has changed its user" in refused(
            "report", dropped.pid, user=NOBODY
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into all")
def test_processes_of_root_are_counted_and_refused_for_others():
    assert "1 is root's" in refused("report", 1)
    assert "not looked into" in cli("ps")


def test_a_process_that_ends_in_the_middle_has_just_ended():
    with worker() as process:
        seen = hakmem._Process(process.pid)
        process.kill()
        process.wait()
        for act in (seen.refresh, lambda: seen.ask("trim"), lambda: seen.rows("segment")):
            with pytest.raises(hakmem.HakmemError, match=r"has just ended|there is no process"):
                act()


def test_a_process_that_becomes_another_program_is_not_the_same():
    with worker(
        source=WORKER.replace(
            "for _ in", "os.environ.pop('LD_PRELOAD'); os.execlp('sleep', 'sleep', '60')\n    for _ in"
        )
    ) as process:
        seen = hakmem._Process(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        for _ in range(1000):
            if Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n":
                break
            time.sleep(0.01)
        with pytest.raises(hakmem.HakmemError, match=r"\(sleep\) is not on hakmem"):
            seen.refresh()


def test_a_stopped_process_is_read_and_takes_no_commands(busy):
    os.kill(busy.pid, signal.SIGSTOP)
    try:
        assert "live_bytes" in cli("report", busy.pid, "pools")
        assert "it is stopped; nothing is queued" in cli("trim", busy.pid, "--timeout", "0.1", check=1)
    finally:
        os.kill(busy.pid, signal.SIGCONT)


# ---- ps
def test_ps_lists_who_is_on_hakmem(busy):
    rows = {row["pid"]: row for row in json.loads(cli("ps", "--fmt", "json"))["processes"]}
    row = rows[busy.pid]
    assert row["version"] == f"{hakmem.__version__} {hakmem.mode().variant}"
    assert row["user"] == hakmem._user(os.geteuid())
    assert row["command"].startswith(sys.executable[:30])
    assert 10 << 20 < row["live"] < row["rss"]
    assert row["seen"] == "yes"
    assert row["age"] < 60
    assert os.getppid() not in rows
    assert busy.pid in list(hakmem._shown_pids())


def test_ps_disturbs_nobody(busy):
    with worker() as process:
        work(process)
        before = hakmem._Process(process.pid, fresh=0).head
        cli("ps")
        assert hakmem._Process(process.pid, fresh=0).head == before


# ---- watch
def test_watch_writes_a_line_each_interval_until_the_process_ends():
    with worker(source=BUSY) as process:
        command = [sys.executable, "-m", "hakmem", "watch", str(process.pid), "--csv", "--interval", "0.05"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as watch:
            lines = [watch.stdout.readline() for _ in range(6)]  # each as soon as it is written
            process.kill()
            process.wait()
            lines += watch.stdout.readlines()
            assert watch.wait() == 0
    rows = list(csv.DictReader(io.StringIO("".join(lines))))
    fields = hakmem._LAYOUTS["stats"].fields
    expected = [field.name for field in fields if {"summary", "pools"} & set(field.view.split())]
    assert list(rows[0]) == ["time", "seconds", "rss", *expected]
    for before, now in itertools.pairwise(rows) if sys.version_info >= (3, 10) else zip(rows, rows[1:]):
        assert datetime.fromisoformat(now["time"]) > datetime.fromisoformat(before["time"])
        assert float(now["seconds"]) > float(before["seconds"])
        assert int(now["allocs"]) > int(before["allocs"])
    assert int(rows[0]["rss"]) > 10 << 20


def test_watch_writes_chosen_columns_as_json_to_a_file(busy, tmp_path):
    file = tmp_path / "out"
    options = ["--columns", "seconds,refills,age", "--fmt", "json", "-n", "3", "--interval", "0.01", "-o", file]
    assert cli("watch", busy.pid, *options) == ""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [list(row) for row in rows] == [["seconds", "refills", "age"]] * 3
    assert "no counter 'refils'; the nearest is 'refills'" in cli("watch", busy.pid, "--columns", "refils", check=1)


def test_watch_ends_at_an_interrupt_without_a_traceback(busy):
    command = [sys.executable, "-m", "hakmem", "watch", str(busy.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as watch:
        assert watch.stdout.readline().startswith("time,")
        watch.send_signal(signal.SIGINT)
        assert watch.wait() == 130
        assert watch.stderr.read() == ""


# ---- trim and set
def test_trim_gives_back_what_it_says():
    with worker(source=BUSY.replace("while True:", "kept.clear()\nfor _ in sys.stdin:"), stats_page="2") as process:
        said = cli("trim", process.pid)
        given, before, after = map(
            float, re.fullmatch(r"gave back ([\d.]+) MiB; RSS ([\d.]+) MiB before, ([\d.]+) MiB after\n", said).groups()
        )
        assert given > 5
        assert before - after > given * 0.7
        assert re.match(r"gave back [\d.,]+ (B|KiB);", cli("trim", process.pid))


def test_set_changes_an_option_within_its_bounds(busy):
    assert cli("set", busy.pid, "purge_ms=50") == "purge_ms: 1000 ms before, 50 ms now\n"
    assert cli("set", busy.pid, "purge_ms=1000") == "purge_ms: 50 ms before, 1000 ms now\n"
    assert cli("set", busy.pid, "retain=64M") == f"retain: {24 << 20} bytes before, {64 << 20} bytes now\n"
    assert cli("set", busy.pid, "adaptive_sizing=off") == "adaptive_sizing: True before, False now\n"
    assert "allowed is 0 to 3600000 ms" in cli("set", busy.pid, "purge_ms=3600001", check=1)
    assert "allowed is" in cli("set", busy.pid, "purge_ms=", check=1)
    assert "the nearest is 'purge_ms'" in cli("set", busy.pid, "purgems=1", check=1)
    assert "before the program starts: HAKMEM_SHARDS=2" in cli("set", busy.pid, "shards=2", check=1)
    assert "write option=value" in cli("set", busy.pid, "purge_ms", check=1)


def test_the_bounds_are_those_of_the_process_where_its_version_is_another(page):
    head, sections, words = taken_apart(page)
    names = words.split(b"\0")
    assert b"purge_ms" in names
    place = words.index(b"\0purge_ms\0") + 1
    for row in sections["option"][3]:
        if row["name"] == place:
            row["most"] = 7
    with showing(put_together(head, sections, words)) as pid:
        assert "allowed is 0 to 7 ms" in cli("set", pid, "purge_ms=8", check=1)
        assert "takes no commands" in cli("set", pid, "purge_ms=7", check=1)
        assert "write a number" in cli("set", pid, "purge_ms=7s", check=1)


# ---- commands that are not answered
def value_of(process, name="purge_ms"):
    work(process)
    seen = hakmem._Process(process.pid)
    return next(int(value) for option, value in seen.options() if option.name == name)


def test_a_process_that_sleeps_answers_at_once_with_a_thread_and_else_not_at_all():
    with worker(stats_page="2") as process:
        assert hakmem._Process(process.pid).ask("set", "purge_ms", 123) == 0
    with worker() as process:
        work(process)
        assert "nothing is queued" in cli("set", process.pid, "purge_ms=123", "--timeout", "0.1", check=1)
        assert value_of(process) == 1000


def test_what_a_reader_leaves_that_is_killed_is_withdrawn_by_the_next_or_comes_too_late():
    for late in (False, True):
        with worker() as process:
            work(process)
            timeout = "0.8" if late else "60"
            command = [sys.executable, "-m", "hakmem", "set", str(process.pid), "purge_ms=123", "--timeout", timeout]
            seen = hakmem._Process(process.pid)
            path = hakmem._shown_files(process.pid, "command")[0]
            asked = commands(path)[0]
            began = time.monotonic()
            with subprocess.Popen(command, cwd=ROOT) as reader:
                while True:  # until it has sent that, and not the wish for a publication before it
                    time.sleep(0.005)
                    with open(path, "rb") as file:
                        sent = hakmem._COMMAND.unpack(file.read(hakmem._COMMAND.size))
                    if sent[9] == hakmem._DO["set"] and sent[5] > asked:
                        break
                    assert time.monotonic() < began + 20
                reader.kill()
            if late:
                time.sleep(max(0, sent[8] / 1e9 - time.monotonic()) + 0.05)
            else:
                with pytest.raises(hakmem.HakmemError, match="nothing is queued"):
                    seen.ask("publish", timeout=0.01)
            assert value_of(process) == 1000


def commands(path):
    with open(path, "rb") as file:
        return hakmem._COMMAND.unpack(file.read(hakmem._COMMAND.size))[5:8]


@pytest.mark.parametrize(
    ("asked", "taken", "is_withdrawn", "after"),
    [
        (7, 6, True, 7 | 1 << 63),  # nobody has taken it
        (7, 6 | 1 << 63, True, 7 | 1 << 63),  # nor the one before, which was withdrawn
        (7, 7, False, 7),  # the process has
        (7, 7 | 1 << 63, True, 7 | 1 << 63),  # it was withdrawn before
    ],
)
def test_only_what_nobody_has_taken_is_withdrawn(asked, taken, is_withdrawn, after):
    memory = bytearray(4096)
    hakmem._COMMAND.pack_into(memory, 0, b"hakmem", 2, 0, 1, 0, asked, taken, asked - 1, 0, 5, 0, 0, 0, b"")
    word = (ctypes.c_char * len(memory)).from_buffer(memory)
    assert hakmem._command_withdraw(ctypes.addressof(word)) is is_withdrawn
    assert hakmem._COMMAND.unpack_from(memory)[5:7] == (asked, after)


def test_a_command_is_obeyed_or_withdrawn_and_never_both():
    """Readers that give up at any moment, three at a time, against a process that allocates without end."""
    with worker(source=BUSY) as process:
        rng, lock = random.Random(5), threading.Lock()
        outcomes = {"obeyed": 0, "withdrawn": 0, "busy": 0}
        wrong = []

        def read(first):
            seen = hakmem._Process(process.pid)
            for value in range(first, first + 40):
                with lock:  # so that nobody else sets another value before it is looked at
                    timeout = rng.choice((0, 0.00005, 0.0001, 0.0002, 0.0004, 0.001))
                    try:
                        seen.ask("set", "purge_ms", value, timeout=timeout)
                        outcome = "obeyed"
                    except hakmem.HakmemError as error:
                        outcome = "busy" if "others" in str(error) else "withdrawn"
                    seen.refresh(fresh=5)
                    now = next(int(now) for option, now in seen.options() if option.name == "purge_ms")
                    outcomes[outcome] += 1
                    if (now == value) != (outcome == "obeyed"):
                        wrong.append((outcome, value, now))

        def disturb():
            seen = hakmem._Process(process.pid)
            while not done.is_set():
                with contextlib.suppress(hakmem.HakmemError):
                    seen.ask("publish", timeout=0.0003)
                time.sleep(0.002)

        done = threading.Event()
        readers = [threading.Thread(target=read, args=(1000 * (n + 2),)) for n in range(2)]
        disturber = threading.Thread(target=disturb)
        for thread in (*readers, disturber):
            thread.start()
        for thread in readers:
            thread.join()
        done.set()
        disturber.join()
        assert not wrong
        assert outcomes["obeyed"] > 5, outcomes
        assert outcomes["withdrawn"] > 5, outcomes


READER = """
import os, sys
files = [os.open(path, os.O_RDWR) for path in sys.argv[1:]]  # below its own, which are moved up
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_process_that_holds_files_of_others_is_not_taken_for_them():
    with worker() as other:
        work(other)
        files = [hakmem._shown_files(other.pid, name)[0] for name in ("stats", "command")]
        with worker(*files, source=READER, stats_page="2") as reader:
            assert len(hakmem._shown_files(reader.pid, "command")) == 2
            seen = hakmem._Process(reader.pid)
            assert seen.head.pid == reader.pid
            seen.ask("set", "purge_ms", 77)
            assert seen.ask("detail") > 0
            assert all(seen.rows("segment"))
        assert value_of(other) == 1000


# ---- run
def test_run_lets_programs_be_seen_unless_told_otherwise(run):
    show = "import os; print(os.environ.get('HAKMEM_STATS_PAGE'))"
    command = [sys.executable, "-m", "hakmem", "run"]
    assert run(*command, "--", sys.executable, "-c", show, HAKMEM_STATS_PAGE=None).stdout == "1\n"
    assert run(*command, "--", sys.executable, "-c", show, HAKMEM_STATS_PAGE="0").stdout == "0\n"
    option = ["-o", "stats_page=2"]
    assert run(*command, *option, "--", sys.executable, "-c", show, HAKMEM_STATS_PAGE="0").stdout == "2\n"


def test_the_command_page_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown() as other:
        process = hakmem._Process(other.pid)
        looked: list[str] = []
        find = hakmem._shown_files
        monkeypatch.setattr(hakmem, "_shown_files", lambda pid, name: looked.append(name) or find(pid, name))
        for _ in range(3):
            process.refresh()
        assert not looked  # a server may have 10,000 descriptors
        process._asked_at = "/proc/self/fd/0"
        process.refresh()
        process.refresh()
        assert looked == ["command"]
