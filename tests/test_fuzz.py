"""Whatever three threads call in whatever order, contents and counts agree with a model, and nothing is left behind."""

from __future__ import annotations

import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from _helpers import C_DIR, ROOT, cc, need, run, scratch, text

CORPUS = ROOT / "tests" / "fuzz_corpus"
BACKEND = ROOT / "_hakmem_backend.c"
COMMON = "-std=gnu11 -g -Wall -Wextra -pthread -DHAK_NO_OVERRIDE=1 -Dclock_gettime=fuzz_clock_gettime".split()
SANITIZE = "-DHAK_DEBUG=1 -fno-sanitize-recover=all -fsanitize=address,undefined"
FLAGS = {"debug": "-O1 -DHAK_DEBUG=1", "release": "-O2", "sanitizers": f"-O0 {SANITIZE}"}
LIBFUZZER = f"-O1 {SANITIZE},fuzzer -DFUZZ_LIBFUZZER=1"
OPTIONS = {"ASAN_OPTIONS": "exitcode=66", "UBSAN_OPTIONS": "print_stacktrace=1"}

# What the fuzzer has to find: mistakes planted in the allocator.
MISTAKES = {
    "calloc returns what was there": (
        "return zero ? hak_zero(p, asked) : p;",
        "return p;",
    ),
    "realloc copies too little": (
        "memcpy(q, p, n < size ? n : size);",
        "memcpy(q, p, (n < size ? n : size) - 8);",
    ),
    "a thread that ends forgets what it owes to others": (
        "\thak_heap_post_all(h); /* what sorting the stacks out has put there */",
        "\tmemset(h->out, 0, sizeof h->out);",
    ),
    "a block is handed out twice": (
        "\t\ts->hint = (uint16_t)w;\n\t\ts->free -= got;",
        "\t\tif (got > 60)\n\t\t\ts->map[w - 1] |= 1;\n\t\ts->hint = (uint16_t)w;\n\t\ts->free -= got;",
    ),
    "an emptied slab is never given back": (
        "\t\thak_heap_release_locked(h, s);\n}",
        "\t\t(void)h;\n}",
    ),
    "a large block that shrinks frees a unit too many": (
        "over = hak_run_release_locked(shard, u + units, len - units, now);",
        "over = hak_run_release_locked(shard, u + units - 1, len - units + 1, now);",
    ),
}


def compiled(name: str, command: list[str], flags: str, backend: Path = BACKEND) -> Path:
    target = scratch() / name
    sources = [str(C_DIR / "fuzz.c"), str(backend)]
    line = [*command, *COMMON, *flags.split(), *sources, "-o", str(target)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, f"{shlex.join(line)}\n{done.stderr}"
    return target


def need_runtime(command: list[str], sanitizers: str) -> None:
    body = "int LLVMFuzzerTestOneInput(void) { return 0; }\n"
    body += "" if "fuzzer" in sanitizers else "int main(void) { return 0; }\n"
    source = scratch() / f"empty-{sanitizers}.c"
    source.write_text(body)
    line = [*command, f"-fsanitize={sanitizers}", str(source), "-o", str(source.with_suffix(""))]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip(f"the runtime of {command[0]} for -fsanitize={sanitizers} is not installed")


@cache
def fuzzer(flavour: str) -> Path:
    if flavour == "sanitizers":
        need_runtime(cc(), "address,undefined")
    return compiled(f"fuzz-{flavour}", cc(), FLAGS[flavour])


@cache
def libfuzzer() -> Path:
    clang = [need("clang")]
    need_runtime(clang, "address,undefined,fuzzer")
    return compiled("libfuzzer", clang, LIBFUZZER)


def fuzz(flavour: str, seed: int, count: int, timeout: float = 120, **env: str) -> None:
    files = sorted(CORPUS.iterdir())
    done = run([fuzzer(flavour), seed, count, *files], preload=False, env={**OPTIONS, **env}, timeout=timeout)
    assert done.returncode == 0, text(done.stderr)[-4000:]
    assert not done.stderr, text(done.stderr)[-4000:]
    assert text(done.stdout).startswith(f"{count + len(files)} inputs, ")


def fuzz_by_coverage(seconds: int) -> str:
    made = scratch() / "corpus"
    made.mkdir(exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-max_len=3000", "-len_control=20", "-timeout=120"]
    command = [libfuzzer(), *limits, made, CORPUS]
    done = run(command, preload=False, env=OPTIONS, cwd=scratch(), timeout=seconds * 2 + 120)
    said = text(done.stderr)
    assert done.returncode == 0, said[-6000:]
    assert "Done " in said, said[-6000:]
    return said


@pytest.mark.parametrize(("flavour", "count"), [("debug", 200), ("release", 100), ("sanitizers", 40)])
def test_random_inputs(flavour: str, count: int) -> None:
    fuzz(flavour, 1, count)


@pytest.mark.parametrize("switch", ["HAKMEM_ENABLE_TLS", "HAKMEM_TLS_TINY", "HAKMEM_TINY_USE_SUPERSLAB"])
def test_random_inputs_under_a_switch(switch: str) -> None:
    fuzz("debug", 10_000, 60, **{switch: "0"})


def test_random_inputs_in_ranges_of_16_mib() -> None:
    fuzz("debug", 20_000, 60, HAKMEM_RESERVE=str(16 << 20))


def test_inputs_found_by_coverage() -> None:
    fuzz_by_coverage(3)


SLOWLY = "a large block that shrinks frees a unit too many"  # found, but only after a quarter of a minute


@pytest.mark.parametrize("mistake", [m if m != SLOWLY else pytest.param(m, marks=pytest.mark.soak) for m in MISTAKES])
def test_a_mistake_in_the_allocator_is_found(mistake: str) -> None:
    right, wrong = MISTAKES[mistake]
    source = BACKEND.read_text()
    assert source.count(right) == 1
    backend = scratch() / "mistake.c"
    backend.write_text(source.replace(right, wrong))
    program = compiled("fuzz-mistake", cc(), "-O0 -DHAK_DEBUG=1 -Wno-unused", backend)
    done = run([program, 1, 200], preload=False)
    assert done.returncode < 0, text(done.stdout)
    assert "input: fuzz " in text(done.stderr), text(done.stderr)


@pytest.mark.soak
@pytest.mark.parametrize("flavour", FLAGS)
def test_many_random_inputs(flavour: str) -> None:
    fuzz(flavour, 1_000_000, 20_000 if flavour != "sanitizers" else 4_000, timeout=3600)


@pytest.mark.soak
def test_ten_minutes_of_inputs_found_by_coverage() -> None:
    fuzz_by_coverage(600)
