"""`top` shows a live process on any terminal, gives the terminal back as it was, and is a plain table elsewhere."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from _helpers import ROOT, environment, library

BUSY = """
import sys, threading, time
kept = [bytes(n) for n in range(600, 60000, 100)]
def work():
    while True:
        [bytes(n) for n in range(600, 40000, 500)]
        time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def begin(source=BUSY, *arguments, **variables):
    """A Python program on hakmem that has said that it is ready, and ends with its stdin."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        env=environment({"LD_PRELOAD": str(library()), "HAKMEM_STATS_PAGE": "1", **variables}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def busy():
    with begin() as process:
        yield process
        process.kill()


class Terminal:
    """A command on a terminal of its own, and what the terminal would show."""

    def __init__(self, *arguments, lines=24, columns=80, term="xterm"):
        self.master, self.slave = os.openpty()
        self.resize(lines, columns)
        self.before = termios.tcgetattr(self.slave)
        command = [sys.executable, "-m", "hakmem", *map(str, arguments)]
        # a leader that waits, as a shell does, and tells when its child was stopped
        leader = (
            "import fcntl, os, signal, subprocess, sys, termios\n"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "tell = int(sys.argv[1])\n"
            "signal.signal(signal.SIGTTOU, signal.SIG_IGN)\n"
            "child = subprocess.Popen(sys.argv[2:], preexec_fn=lambda: (os.setpgid(0, 0), os.tcsetpgrp(0, os.getpid()),"
            " signal.signal(signal.SIGTTOU, signal.SIG_DFL)))\n"
            "os.write(tell, b'%d\\n' % child.pid)\n"
            "while True:\n"
            "    _pid, status = os.waitpid(child.pid, os.WUNTRACED)\n"
            "    os.write(tell, b'%d\\n' % status)\n"
            "    if not os.WIFSTOPPED(status):\n"
            "        break\n"
        )
        told, tell = os.pipe()

        variables = {"TERM": term, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
        self.leader = subprocess.Popen(
            [sys.executable, "-c", leader, str(tell), *command],
            env=environment(variables),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            pass_fds=(tell,),
        )
        os.close(tell)
        self.told = os.fdopen(told)
        self.pid = int(self.told.readline())
        self.said = ""

    def resize(self, lines, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self.lines, self.columns = lines, columns

    def until(self, pattern, limit=10.0):
        """Read until it has said something that matches; returns all that it said since the last time."""
        end, seen = time.monotonic() + limit, ""
        while not re.search(pattern, seen, re.DOTALL):
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} in {seen[-3000:]!r}"
            if select.select([self.master], [], [], left)[0]:
                seen += os.read(self.master, 65536).decode()
        self.said += seen
        return seen

    def frames(self, seen):
        """The frames of it, as lists of lines as long as the terminal has."""
        frames = [re.split("\r+\n", part) for part in seen.split("\x1b[H")[1:]]
        return [[re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", line) for line in frame] for frame in frames]

    def type(self, keys):
        os.write(self.master, keys.encode())

    def status(self):
        return int(self.told.readline())

    def is_restored(self):
        return termios.tcgetattr(self.slave)[:4] == self.before[:4]

    def close(self):
        self.leader.kill()
        self.leader.wait()
        self.told.close()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal():
    made = []

    def open_one(*arguments, **options):
        made.append(Terminal(*arguments, **options))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def test_top_fits_80_by_24_and_gives_the_terminal_back_at_q(busy, terminal):
    t = terminal("top", busy.pid, "--interval", "0.1")
    seen = t.until(r"allocs/s.*\x1b\[H.*\x1b\[H.*\x1b\[H.*q: quit")
    assert seen.startswith(ENTER) or ENTER in seen
    assert not t.is_restored()
    frame = t.frames(seen)[-2]
    assert len(frame) == 24
    assert max(map(len, frame)) <= 79
    assert frame[0].startswith(f"{busy.pid} python")
    assert "RSS" in frame[1]
    assert "purgeable" in frame[2]
    assert "contended" in frame[3]
    assert frame[5].split() == ["size", "tier", "blocks", "live", "cached", "slabs", "allocs/s", "hits"]
    assert any(re.search(r"[1-9][\d,]* +\d+\.\d%$", line) for line in frame), frame  # some class is busy
    t.type("q")
    end = t.until(re.escape(LEAVE))
    assert t.status() == 0
    assert t.is_restored()
    assert not end.split(LEAVE)[1].strip()


def test_each_page_sorting_pause_and_help_answer_to_their_keys(busy, terminal):
    t = terminal("top", busy.pid, "--interval", "0.1")
    t.until("allocs/s")
    t.type("t")
    t.until(r"mname +blocks.*\nl25 .*q: quit")
    t.type("h")
    t.until(r"m *heap +thread +used")
    t.type("l")
    t.until(r"mname +taken.*\nclaims .*q: quit")
    t.type("c<")
    seen = t.until("by blocks.*q: quit")
    sizes = [
        int(re.split("  +", line.strip())[2].replace(",", "")) for line in t.frames(seen)[-1][6:23] if line.strip()
    ]
    assert sizes == sorted(sizes, reverse=True), sizes
    t.type("r")
    seen = t.until(r"by blocks.*\x1b\[H.*by blocks.*q: quit")
    sizes = [
        int(re.split("  +", line.strip())[2].replace(",", "")) for line in t.frames(seen)[-1][6:23] if line.strip()
    ]
    assert sizes == sorted(sizes), sizes
    t.type("\x1b[D")
    t.until("by tier")
    t.type("+-")
    t.until("every 0.2 s")
    t.type("p")
    t.until("paused")
    t.type("?")
    t.until("the process gives back what it does not use")
    t.type("qq")
    t.until(re.escape(LEAVE))
    assert t.status() == 0


def test_trim_asks_first(busy, terminal):
    t = terminal("top", busy.pid, "--interval", "0.1")
    t.until("allocs/s")
    t.type("T")
    t.until(r"give back what it does not use\? y/n")
    t.type("n")
    seen = t.until(r"every 0.1 s.*\x1b\[H.*every 0.1 s")
    assert "it gave back" not in seen
    t.type("T")
    t.until("y/n")
    t.type("y")
    t.until(r"it gave back \d")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_the_terminal_is_as_before_after_a_signal(busy, terminal, number):
    t = terminal("top", busy.pid)
    t.until("allocs/s")
    os.kill(t.pid, number)
    end = t.until(re.escape(LEAVE))
    assert os.WEXITSTATUS(t.status()) == 128 + number
    assert t.is_restored()
    assert "Traceback" not in end


def test_an_error_gives_the_terminal_back_and_is_one_line(busy, terminal):
    t = terminal("top", busy.pid, "--sort", "nothing")
    seen = t.until(r"no column 'nothing'; there are size, tier.*\n")
    assert os.WEXITSTATUS(t.status()) == 1
    assert t.is_restored()
    assert seen.rindex(LEAVE) < seen.index("no column")
    assert "Traceback" not in seen


def test_control_z_gives_the_terminal_back_and_it_comes_back_with_the_process(busy, terminal):
    t = terminal("top", busy.pid, "--interval", "0.1")
    t.until("allocs/s")
    t.type("\x1a")
    t.until(re.escape(LEAVE))
    assert os.WIFSTOPPED(t.status())
    assert t.is_restored()
    os.kill(t.pid, signal.SIGCONT)
    t.until(re.escape(ENTER) + ".*allocs/s")
    assert not t.is_restored()
    t.type("\x1a")  # and once more
    t.until(re.escape(LEAVE))
    assert os.WIFSTOPPED(t.status())
    os.kill(t.pid, signal.SIGCONT)
    t.until(re.escape(ENTER) + ".*allocs/s")
    t.type("q")
    t.until(re.escape(LEAVE))
    assert t.status() == 0


def test_a_window_that_changes_its_size_is_filled_at_once(busy, terminal):
    t = terminal("top", busy.pid, "--interval", "60")
    t.until("allocs/s.*allocs/s")
    for lines, columns in ((40, 132), (10, 30), (3, 12), (1, 1), (24, 80)):
        t.resize(lines, columns)
        frame = t.frames(t.until(rf"\x1b\[H(?:[^\n]*\n){{{lines - 1}}}[^\n]*\x1b\[K"))[-1]
        assert len(frame) == lines
        assert max(map(len, frame)) <= columns - 1


def test_it_writes_once_for_each_frame(busy, terminal):
    t = terminal("top", busy.pid, "--interval", "0.1")
    t.until("allocs/s")
    io = Path(f"/proc/{t.pid}/io")
    count = int(re.search(r"syscw: (\d+)", io.read_text())[1])
    seen = t.until(r"(?:\x1b\[H.*){10}")
    more = int(re.search(r"syscw: (\d+)", io.read_text())[1])
    assert more - count <= seen.count("\x1b[H") + 2


def test_it_ends_in_one_line_when_the_process_ends(busy, terminal):
    t = terminal("top", busy.pid, "--interval", "0.1")
    t.until("allocs/s")
    busy.kill()
    seen = t.until(r"hakmem: top: [^\n]*ended[^\n]*\n")
    assert t.status() == 0
    assert t.is_restored()
    assert len(seen.split(LEAVE)[1].splitlines()) == 1


def test_n_shows_another_process(busy, terminal):
    with begin() as other:
        t = terminal("top", busy.pid, "--interval", "0.1")
        t.until("allocs/s")
        for _ in range(50):  # there may be more, of other tests
            t.type("n")
            if f"\n{other.pid} python" in "\n" + "\n".join(t.frames(t.until(r"\x1b\[H.*q: quit"))[-1]):
                break
        else:
            pytest.fail("it never came to the other process")
        other.kill()


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_a_table(busy, terminal, term):
    t = terminal("top", busy.pid, "--interval", "0.1", term=term)
    seen = t.until("hits.*---.*tiny.*\n")
    assert t.status() == 0
    assert "\x1b" not in seen
    assert t.is_restored()


def test_where_no_terminal_is_it_prints_n_tables(busy, run):
    out = run(sys.executable, "-m", "hakmem", "top", busy.pid, "-n", "2", "--interval", "0.1", "--sort", "live").stdout
    assert out.count(f"{busy.pid} python") == 2
    assert out.count("hits") == 2
    assert "\x1b" not in out


@pytest.mark.parametrize("page", ["classes", "tiers", "heaps", "locks"])
def test_each_page_has_rates_of_the_interval(busy, run, page):
    out = run(sys.executable, "-m", "hakmem", "top", busy.pid, "--page", page, "--interval", "0.1").stdout
    header, _rule, *rows = out.split("\n\n")[1].splitlines()
    column = re.split("  +", header.strip()).index("taken/s" if page == "locks" else "allocs/s")
    rates = [int(re.split("  +", row.strip())[column].replace(",", "")) for row in rows]
    assert sum(rates) > 100, out


def test_without_a_pid_it_is_the_process_with_the_most_memory(run):
    big = BUSY.replace("kept =", "more = b'x' * (300 << 20)\nkept =")
    with begin(big) as process:
        out = run(sys.executable, "-m", "hakmem", "top", "--interval", "0.1").stdout
        assert out.startswith(f"{process.pid} python")
        process.kill()
