"""Without thread caches the allocator runs under helgrind without an error, and with its locks taken out with many."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Optional

import pytest
from _helpers import ROOT, cc, need, program, run, scratch, text

FLAGS = ("-DHAK_PTHREAD_LOCKS=1", "-DHAK_NO_OVERRIDE=1")


@cache
def threads(*more: str) -> Path:
    need("valgrind")
    source = scratch() / "header.c"
    source.write_text("#include <valgrind/helgrind.h>\nint main(void) { return 0; }\n")
    command = [*cc(), "-fsyntax-only", str(source)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("valgrind's header helgrind.h is not installed")
    return program("helgrind.c", *FLAGS, *more, also=ROOT / "_hakmem_backend.c")


def helgrind(
    program_: Path, rounds: int, changes: Optional[dict[str, str]] = None
) -> subprocess.CompletedProcess[bytes]:
    # no suppression but valgrind's own, which are for the C library's insides
    tool = ["valgrind", "-q", "--tool=helgrind", "--history-level=approx", "--error-exitcode=66", "--error-limit=no"]
    # threads' stacks that the C library keeps and hands on, with what stands in them, look like races to helgrind
    env = {"HAKMEM_ENABLE_TLS": "0", "GLIBC_TUNABLES": "glibc.pthread.stack_cache_size=0", **(changes or {})}
    return run([*tool, program_, rounds], preload=False, env=env, timeout=300)


def test_no_error_without_thread_caches() -> None:
    done = helgrind(threads(), 2)
    assert done.returncode == 0, text(done.stderr)[:6000]
    assert (text(done.stdout), text(done.stderr)[:6000]) == ("2 rounds\n", "")


@pytest.mark.soak
@pytest.mark.parametrize("page", ["1", "2"])
def test_no_error_with_a_stats_page(page: str) -> None:
    done = helgrind(threads(), 1, {"HAKMEM_STATS_PAGE": page})
    assert (done.returncode, text(done.stdout), text(done.stderr)[:6000]) == (0, "1 rounds\n", "")


def test_errors_without_locks() -> None:
    said = text(helgrind(threads("-DHAK_NOLOCK=1"), 1).stderr)
    assert said.count("Possible data race") > 20, said[:3000]
    assert "_hakmem_backend.c" in said
