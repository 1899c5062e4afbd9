"""Each misuse of a block ends the process as tests/faults/table.txt says, in each build, with no other message."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from _helpers import LANGUAGE, ROOT, build, cc, cxx, library, program, run, scratch, succeed, text

FAULTS = ROOT / "tests" / "faults"
TABLE = FAULTS / "table.txt"
FLAGS = "-O1 -Wall -Wextra -Wno-unused-parameter -pthread -fno-builtin".split()
BUILDS = {"default": {}, "hardened 1": {"HAKMEM_HARDENED": "1"}, "hardened 2": {"HAKMEM_HARDENED": "2"}}
NOTE = re.compile(
    r"(?:(?P<into>\d+) bytes into )?a block of (?P<size>\d+) bytes, class (?P<class>\d+)"
    r"(?:, (?P<note>asked for|freed by thread|never handed out)(?: (?P<number>\d+))?)?"
)


@cache
def table() -> dict[str, dict[str, str]]:
    """What comes of a program with its arguments, perhaps after variables, in each build."""
    rows: dict[str, dict[str, str]] = {}
    for line in TABLE.read_text().splitlines():
        if line and not line.startswith("#"):
            command, *cells = (cell.strip() for cell in line.split("|"))
            for i, cell in enumerate(cells):
                cells[i] = cells[i - 1] if cell == "=" else cell
            assert len(cells) == len(BUILDS), line
            assert command not in rows, command
            rows[command] = dict(zip(BUILDS, cells))
    return rows


def split(command: str) -> tuple[dict[str, str], str, list[str]]:
    """The variables, the program and the arguments of a row."""
    words = command.split()
    env = dict(word.split("=", 1) for word in words if "=" in word)
    name, *arguments = words[len(env) :]
    return env, name, arguments


@cache
def sources() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FAULTS.iterdir()) if path.suffix in LANGUAGE}


@cache
def compiling() -> dict[str, Future[Path]]:
    """All programs, once a session and a few at a time."""
    compilers = {".c": cc(), ".cc": cxx()}
    directory = scratch() / "faults"
    directory.mkdir()

    def compile_one(source: Path) -> Path:
        target = directory / source.stem
        command = [*compilers[source.suffix], *LANGUAGE[source.suffix], *FLAGS, source, "-o", target, "-ldl"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return target

    pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1)
    return {name: pool.submit(compile_one, source) for name, source in sources().items()}


@cache
def library_of(which: str) -> Path:
    return library() if which == "default" else build.build("hardened", quiet=True)


@cache
def classes() -> dict[int, int]:
    """The number of the class whose blocks are so large."""
    rows = [line.split() for line in succeed([program("classes.c"), "show"]).splitlines()]
    return {int(size): int(index) for index, _, size, *_ in rows}


def note_in_short(note: str, thread: str, into: str) -> str:
    """What is known of a block, as the table has it."""
    found = NOTE.fullmatch(note)
    assert found, note
    assert classes()[int(found["size"])] == int(found["class"]), note
    short = found["size"]
    if found["into"]:
        assert found["into"] != "0"
        short += f"+{'OFFSET' if found['into'] == into else found['into']}"
    if found["note"] == "freed by thread":
        assert found["number"] == thread, note
        short += " freed"
    elif found["note"]:
        short += f" {found['note']}" + (f" {found['number']}" if found["number"] else "")
    return f" [{short}]"


def outcome(row: str, which: str) -> str:
    """What comes of a program in a build, as the table has it."""
    env, name, arguments = split(row)
    command = [compiling()[name].result(), *arguments]
    done = run(command, preload=False, first=library_of(which), env={**BUILDS[which], **env})
    said, out = text(done.stderr), text(done.stdout).splitlines()
    if out == ["no guard"]:
        assert (done.returncode, said) == (0, "")
        return "no guard"
    pointer, thread, into = out[0].split()
    lived = "lived" in out
    if not said:
        if done.returncode == 0:
            assert lived
            return "not found"
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
        return ended + (" later" if lived else "")
    message = re.fullmatch(r"hakmem: ([a-z_ ]+)\((0x[0-9a-f]+)\): ([^(\n]+?)(?: \((.+)\))?\n", said)
    assert message, said
    assert message[2] == pointer, said
    found = f"{message[1]}: {message[3]}" + (note_in_short(message[4], thread, into) if message[4] else "")
    if done.returncode != -signal.SIGABRT:
        found += f", exit {done.returncode}"
    return found + (" later" if lived else "")


@pytest.mark.parametrize("command", table())
def test_a_misuse_ends_as_the_table_says(command: str) -> None:
    assert {which: outcome(command, which) for which in BUILDS} == table()[command]


def test_every_program_is_in_the_table() -> None:
    assert {split(command)[1] for command in table()} == set(sources())
    assert len(sources()) >= 60


@pytest.mark.parametrize("env", [{}, {"HAKMEM_ENABLE_TLS": "0"}], ids=str)
@pytest.mark.parametrize("which", BUILDS)
def test_the_checked_calls_return_the_fault_and_the_process_goes_on(which: str, env: dict[str, str]) -> None:
    succeed([program("checked.c")], preload=False, first=library_of(which), env={**BUILDS[which], **env})


def test_many_threads_may_run_while_a_handler_allocates() -> None:
    for _ in range(10):  # whoever holds a lock at that moment, it is waited for
        for which in BUILDS:
            assert outcome("handler_among_threads", which) == table()["handler_among_threads"][which]


if __name__ == "__main__":
    for row in sys.argv[1:] or table():
        print(" | ".join([row, *(outcome(row, which) for which in BUILDS)]), flush=True)
