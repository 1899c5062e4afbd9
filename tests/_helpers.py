"""What the tests share: C programs compiled once a session, and run with hakmem preloaded, each in a process group."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Optional, Union

import pytest

ROOT = Path(__file__).resolve().parent.parent
C_DIR = ROOT / "tests" / "c"
sys.path.insert(0, str(ROOT))

import build  # noqa: E402

FLAGS = "-O1 -g -Wall -Wextra -pthread -fno-builtin".split()
LANGUAGE = {".c": ["-std=gnu11"], ".cc": ["-std=c++17", "-fsized-deallocation"]}

Argument = Union[str, Path, int]


@cache
def scratch() -> Path:
    """A directory for this session's programs."""
    directory = Path(tempfile.mkdtemp(prefix="hakmem-tests-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@cache
def library() -> Path:
    """The library that the programs run under."""
    chosen = os.environ.get("HAKMEM_LIBRARY")
    return Path(chosen) if chosen else build.build("release", quiet=True)


def need(program: str) -> str:
    """The path of a program; the test is skipped, by the program's name, where it is missing."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def cc() -> list[str]:
    """The C compiler's command."""
    return build.find_compiler()


def cxx() -> list[str]:
    """The C++ compiler's command."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        return chosen
    if shutil.which("g++") is None and shutil.which("clang++"):
        return ["clang++"]
    return [need("g++")]


def case_names(source: str) -> list[str]:
    """The cases of a program, as its table lists them."""
    return re.findall(r"(?<!#define )\bCASE\((\w+)\)", (C_DIR / source).read_text())


@cache
def program(source: str, *flags: str, also: Optional[Path] = None) -> Path:
    """A file of tests/c as a program, or as a library with -shared."""
    language = Path(source).suffix
    command = cxx() if language == ".cc" else cc()
    target = scratch() / "-".join([source.replace(".", "-"), *(re.sub(r"\W+", "", flag) for flag in flags)])
    sources = [C_DIR / source, *([also] if also else [])]
    done = subprocess.run(
        [*command, *LANGUAGE[language], *FLAGS, *flags, *map(str, sources), "-o", str(target), "-ldl"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def environment(changes: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """The environment without whatever would change an allocator's behaviour, plus changes."""
    ours = ("HAKMEM_", "LD_PRELOAD", "PYTHONMALLOC", "MALLOC_", "GLIBC_TUNABLES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, **(changes or {})}


def run(
    command: Sequence[Argument],
    *,
    preload: bool = True,
    first: Optional[Path] = None,
    last: Optional[Path] = None,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[Path] = None,
    stdin: Optional[bytes] = None,
    limit_kib: Optional[int] = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, whatever that is; first and last are libraries preloaded round hakmem."""
    changed = environment(env)
    libraries = [str(path) for path in (first, library() if preload else None, last) if path]
    if libraries:
        changed["LD_PRELOAD"] = ":".join(libraries)
    arguments = [str(part) for part in command]
    if limit_kib is not None:
        arguments = ["sh", "-c", 'ulimit -v "$0" && exec "$@"', str(limit_kib), *arguments]
    with subprocess.Popen(
        arguments,
        env=changed,
        cwd=cwd,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{shlex.join(arguments)} hung; so far it said:\n{text(out)}{text(err)}")
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def text(output: bytes) -> str:
    """Output for a message."""
    return output.decode(errors="replace")


def succeed(command: Sequence[Argument], *, quiet: bool = True, **options: Any) -> str:
    """Run a command (options as for run) that must end with 0 and, if quiet, keep stderr empty; returns its output."""
    done = run(command, **options)
    said = text(done.stderr)[-3000:] + text(done.stdout)[-2000:]
    assert done.returncode == 0, f"{shlex.join(done.args)} ended with {done.returncode}: {said}"
    if quiet:
        assert not done.stderr, text(done.stderr)[-3000:]
    return text(done.stdout)
