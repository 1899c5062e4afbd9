"""The stress program runs without a report under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest
from _helpers import ROOT, Argument, cc, program, run, scratch, text

ROUNDS = {"thread": 5, "address": 30, "undefined": 30}
OPTIONS = {
    "TSAN_OPTIONS": "die_after_fork=0 exitcode=66",  # the children of a process with threads go on; they start none
    "ASAN_OPTIONS": "exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@cache
def need_sanitizer(sanitizer: str) -> str:
    flag = f"-fsanitize={sanitizer}"
    empty = scratch() / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    command = [*cc(), flag, str(empty), "-o", str(scratch() / "empty")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"the compiler's runtime for {flag} is not installed")
    return flag


@cache
def stress(sanitizer: str, *more: str) -> Path:
    flag = need_sanitizer(sanitizer)
    if sanitizer == "undefined":
        more += ("-fno-sanitize-recover=all",)
    define = ["-DHAK_NO_OVERRIDE=1", f'-DHAK_VARIANT="{sanitizer}"']
    return program("stress.c", flag, *more, *define, also=ROOT / "_hakmem_backend.c")


def check_stress(command: list[Argument], env: dict[str, str]) -> None:
    env = {**OPTIONS, **env}
    done = run(command, env=env, preload=False)
    if b"unexpected memory mapping" in done.stderr:  # older runtimes cannot place their shadow under much ASLR
        done = run(["setarch", "-R", *command], env=env, preload=False)
    assert done.returncode == 0, text(done.stderr)[:6000]
    assert not done.stderr, text(done.stderr)[:6000]


SWITCHES = ["", "HAKMEM_ENABLE_TLS=0", "HAKMEM_TLS_TINY=0", "HAKMEM_TINY_USE_SUPERSLAB=0"]
SHARDS = ["HAKMEM_SHARDS=64", "HAKMEM_SHARD_THRESHOLD=1"]  # the second: they become more in the middle of all
PAGE = ["HAKMEM_STATS_PAGE=1"]
RUNS = [(sanitizer, switch) for sanitizer in ROUNDS for switch in (SWITCHES + PAGE + SHARDS * (sanitizer == "thread"))]


@pytest.mark.parametrize(("sanitizer", "switch"), RUNS)
def test_stress(sanitizer: str, switch: str) -> None:
    rounds = max(1, ROUNDS[sanitizer] // (2 if switch else 1))
    check_stress([stress(sanitizer), rounds], dict([switch.split("=")]) if switch else {})


@pytest.mark.parametrize("level", ["1", "2"])
@pytest.mark.parametrize("sanitizer", ROUNDS)
def test_stress_hardened(sanitizer: str, level: str) -> None:
    rounds = max(1, ROUNDS[sanitizer] // 4)
    check_stress([stress(sanitizer, "-DHAK_HARDENED=1"), rounds], {"HAKMEM_HARDENED": level})


@pytest.mark.parametrize("mode", ["shadow", "on"])
@pytest.mark.parametrize("sanitizer", ROUNDS)
def test_stress_with_ace(sanitizer: str, mode: str) -> None:
    rounds = max(1, ROUNDS[sanitizer] // 4)
    # ThreadSanitizer's children may start no thread, as its own locks are held in them: there it runs without forks
    command: list[Argument] = [stress(sanitizer), rounds, *(["without forks"] if sanitizer == "thread" else [])]
    check_stress(command, {"HAKMEM_ACE": mode, "HAKMEM_ACE_MS": "10"})
