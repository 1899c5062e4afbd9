"""Programs on hakmem that let themselves be seen, and do as they are told, for the tests of those who look."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from _helpers import ROOT, environment, library

ANSWERS = """
import ctypes, sys
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
c.malloc_usable_size.argtypes = [ctypes.c_void_p]
kept = []
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Shown:
    """A Python program with hakmem preloaded that runs the lines it is given; pid is its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.pid = process, process.pid
        self._said("ready")

    def _said(self, word: str) -> None:
        line = self.process.stdout.readline()
        assert line == word + "\n", (line, self.process.poll())

    def do(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self._said("done")

    def allocate(self, size: int, count: int) -> None:
        self.do(f"kept += [c.malloc({size}) for _ in range({count})]")


@contextmanager
def shown(page: int = 2, **options: Any) -> Iterator[Shown]:
    """Such a program, until the end of the block; options of hakmem by name. page=1: it answers when it allocates."""
    settings = {f"HAKMEM_{name.upper()}": str(value) for name, value in {"stats_page": page, **options}.items()}
    process = subprocess.Popen(
        [sys.executable, "-c", ANSWERS],
        env=environment({"LD_PRELOAD": str(library()), **settings}),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Shown(process)
    finally:
        process.kill()
        process.communicate()
