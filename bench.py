#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["psutil", "tabulate"]
# ///
"""Time hakmem beside the system allocator and every other allocator found on this machine.

    python bench.py                     `quick`: something of everything, about 80 seconds
    python bench.py larson -n 5 --threads 1,4,16,32 --seconds 2
    python bench.py scenarios --only system,hakmem --plot scenarios.png
    python bench.py python --python ~/.pyenv/versions/3.13.0/bin/python
    python bench.py phases              what each layer of thread caches brings, on blocks of every tier; two minutes
    python bench.py instructions        instructions a malloc+free pair takes, counted by valgrind
    python bench.py suites              what the suites that people know stress, each at its threads; six minutes
    python bench.py scaling             1 to 32 threads, and the locks that they share; five minutes
    python bench.py lookup              from a pointer to its slab: by address, hash registry, scan; half a minute
    python bench.py adaptive            thread caches that adapt their size, beside fixed ones; three minutes
    python bench.py prewarm             a thread's first calls, with and without caches filled beforehand
    python bench.py sites               what a rule for one call site brings: the few blocks that stay, set apart
    python bench.py ace                 the learning thread off, in shadow and on, on loads that change; eight minutes
    python bench.py peers               which allocators were found, and how to install more
    python bench.py --peer mi3=/opt/mi3/libmimalloc.so.3 --json rows.json

    workload      threads  allocator   ops/s  time/op  / system      range  / best peer  its range  RSS MB
    ------------  -------  ---------  ------  -------  --------  ---------  -----------  ---------  ------
    larson-relay        4  system     27.3 M  36.7 ns      1.00  1.00-1.00         2.04  1.80-3.18    66.9
    larson-relay        4  hakmem     92.0 M  10.9 ns      0.29  0.26-0.37         0.67  0.58-0.82    39.2
    larson-relay        4  mimalloc   33.1 M  30.2 ns      0.82  0.71-1.02         1.84  1.68-2.25   100.2
    larson-relay        4  jemalloc   37.7 M  26.5 ns      0.72  0.58-0.90         1.61  1.47-1.86    58.9
    larson-relay        4  tcmalloc   56.8 M  17.6 ns      0.49  0.31-0.56         1.00  1.00-1.00    41.9

are rows of `quick` (its table goes on with percentiles, page faults, hit rate and locks), and under it stand

    allocator      cases    time / system    RSS / system    time / best peer    RSS / leanest peer
    -----------  -------  ---------------  --------------  ------------------  --------------------
    hakmem            16             0.24            1.22                0.85                  1.05
    mimalloc          16             0.37            1.56                1.32                  1.34
    jemalloc          16             0.91            1.33                3.20                  1.14
    tcmalloc          16             0.33            1.59                1.18                  1.37

for its 16 cases, measured on two shared cores.

Every run is a fresh process with the allocator in LD_PRELOAD, and fails unless the malloc that it called is that
library's. The allocators take turns, round by round, another one first in every round, so that a slow minute of the
machine hits them all; each round has a seed of its own. The clock starts when the workload's blocks are there and
were replaced several times (larson: are there; prodcons: none is), and faults, hit rate and locks are counted from
then on. An op is one malloc and one free, in `realloc` one realloc
(of whole growths), in `scenarios` a request of several mallocs and frees, in `python` a round of the program;
`_bench_workloads` without arguments says what each workload does. Ratios are time over time, below 1 is faster: the
median of the rounds' own ratios, and their range. RSS is the peak of the whole process, its ratios are those of the
medians, and the leanest peer is the one with the lowest in that row. Faults are page faults per thousand ops; hit rate
(the share of mallocs that a thread cache served) and locks (shared-lock acquisitions per million ops, or per million
mallocs where an op makes several) are hakmem's own counters. p50, p95 and p99 are of single requests. A run that fails
is a row that says so, and exit code 1; who does not end in time is not run again. The caller's variables that
allocators read, as HAKMEM_*, MALLOC_*, MIMALLOC_* or PYTHONMALLOC, are not passed on; --env sets variables.

How much is chance: the system's allocator and two copies of it were compared with each other by `quick` twice, 96
pairs of rows. 85 ratios lay within 1.15; of the others all but two, 0.84 and 1.31, had a range with 1 in it; the worst
were 2.25 (prodcons-mid) and 0.50 (realloc-large). So the text under the table calls a ratio to the best peer a loss
from 1.15 and if every round was slower; even then one row in fifty may be chance, and more rounds (-n) help.

A peer is every allocator but the system's and hakmem; the best is the one with the lowest median time in that row,
so it changes from row to row. Python programs run with PYTHONMALLOC=malloc, or the allocator would only see
pymalloc's arenas; there pymalloc itself (the default, on the system's malloc) and, where the interpreter has it,
PYTHONMALLOC=mimalloc are peers too, since they are what the program would otherwise use.

Not measured: latency of single calls; memory held after the load is over; fragmentation over hours; programs that
do more than allocate (the differences are smaller there); more cores than this machine has. With more threads than
cores the time is the scheduler's too. `instructions` counts instructions, neither cycles nor cache misses. Most
workloads write one byte in each OS page of a block, not all of it: programs that fill their blocks gain less (of
`suites`, all but handoff, passes and big do so); `phases` write only a block's ends, so that what they compare is the
allocator's part and not the memory's.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import importlib.util
import io
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import geometric_mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

INSTALLED = Path(__file__).name != "bench.py"
if TYPE_CHECKING or not INSTALLED:
    import build
else:  # an installed copy: PyPI has a package called build
    import _hakmem_build as build

PROGRAM = "python -m hakmem bench" if INSTALLED else "bench.py"
SYSTEM, HAKMEM = "system", "hakmem"


def stop(message: object) -> SystemExit:
    return SystemExit(f"{PROGRAM}: {message}")


# ---- Allocators


@dataclass(frozen=True)
class Allocator:
    """What a run is started with: a library to preload (None: the system's malloc) and environment variables."""

    name: str
    library: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    is_hakmem: bool = False  # so it is no peer, and must be found in the process
    one_thread: bool = False  # it cannot run more

    def __post_init__(self) -> None:
        if re.search(r"[\s:]", str(self.library or "")):
            raise stop(f"LD_PRELOAD cannot hold a space or ':': move {self.library}")

    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED_ON)}
        preload = {"LD_PRELOAD": str(self.library)} if self.library else {}
        return {**env, **preload, **self.variables}


# name: (how its library is called, what the variables that it reads begin with, how to install it)
PEERS = {
    "mimalloc": (("libmimalloc.so*",), ("MIMALLOC_",), "apt install libmimalloc2.0 | dnf install mimalloc"),
    "jemalloc": (("libjemalloc.so*",), ("JE_MALLOC_",), "apt install libjemalloc2 | dnf install jemalloc"),
    "tcmalloc": (
        ("libtcmalloc_minimal.so*", "libtcmalloc.so*"),
        ("TCMALLOC_", "HEAP"),
        "apt install libtcmalloc-minimal4 | dnf install gperftools-libs",
    ),
    "mimalloc3": (("cmeel.prefix/lib/libmimalloc.so.3*",), ("MIMALLOC_",), "pip install cmeel-mimalloc"),
    "rpmalloc": (("librpmalloc*.so*",), ("RPMALLOC_",), "build it, then --peer rpmalloc=PATH"),
    "snmalloc": (("libsnmallocshim.so*",), ("SNMALLOC_",), "build it, then --peer snmalloc=PATH"),
}

# rows that only Python programs have, without a preload: their PYTHONMALLOC
PYTHONS = {"pymalloc": "pymalloc", "pymimalloc": "mimalloc"}

# what a row's own name says, or the rounds choose: --env may not set it
RESERVED = ("LD_", "PYTHONMALLOC", "PYTHONHASHSEED")
# what of the caller's variables would change a row: those, and what allocators and Python's allocation read
NOT_PASSED_ON = (
    *("LD_PRELOAD", "PYTHONMALLOC", "PYTHONHASHSEED", "PYTHONDEVMODE", "PYTHONTRACEMALLOC"),
    *("HAKMEM_", "MALLOC_", "GLIBC_TUNABLES"),
    *(prefix for _, prefixes, _ in PEERS.values() for prefix in prefixes),
)


def library_folders() -> Iterator[Path]:
    """Where `make install`, distributions and pip put shared libraries, in this order."""
    for root in (Path("/usr/local"), Path("/usr")):
        yield from sorted((root / "lib").glob(f"{platform.machine()}-linux-*"))
        yield root / "lib64"
        yield root / "lib"
    yield Path(sysconfig.get_path("platlib"))


def find_library(sonames: Iterable[str]) -> Path | None:
    """The newest version in the first folder that has one."""
    for soname in sonames:
        for folder in library_folders():
            found = sorted(folder.glob(soname), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
            if found:
                return found[-1].resolve()
    return None


def find_peers(given: Iterable[tuple[str, str]]) -> dict[str, Path]:
    """The libraries of the peers; one given by name replaces the one found."""
    found = {name: find_library(sonames) for name, (sonames, _, _) in PEERS.items()}
    taken = {SYSTEM, HAKMEM, *PYTHONS}
    for name, path in given:
        if name in taken or not re.fullmatch(r"[\w.+-]+", name) or not Path(path).is_file():
            raise stop(f"--peer {name}={path}: a name of its own and a library that exists are needed")
        taken.add(name)
        found[name] = Path(path).resolve()
    return {name: path for name, path in found.items() if path}


def hakmem_library(variant: str = "release") -> Path:
    """hakmem's library, built if need be; what an installation brought is used as it is."""
    path = build.library_path(variant)
    if INSTALLED or not os.access(build.HERE, os.W_OK):
        return path if path.exists() else build.library(variant)
    with contextlib.redirect_stdout(sys.stderr):  # stdout may be the JSON
        return build.build(variant)


def choose(known: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """The names that --only leaves of those known."""
    for name in only or ():
        if name not in known:
            raise stop(f"{name} was not found; there are {', '.join(known)} (`{PROGRAM} peers` tells how to get more)")
    return [name for name in known if not only or name in only]


def choose_allocators(options: argparse.Namespace) -> list[Allocator]:
    """system, hakmem and the peers, or those of them that --only names."""
    libraries = {SYSTEM: None, HAKMEM: build.library_path(), **find_peers(options.peer)}
    names = choose([*libraries, *(PYTHONS if "python" in options else ())], options.only)
    names = [name for name in names if name in libraries]
    if HAKMEM in names:
        libraries[HAKMEM] = hakmem_library()
    return [Allocator(name, libraries[name], dict(options.env), is_hakmem=name == HAKMEM) for name in names]


# ---- One run

# hakmem's
COUNTERS = ("allocs", "cache_hits", "shared_locks", "shared_locks_contended", "claims", "big_hits", "big_misses")


@dataclass(frozen=True)
class Case:
    """What is run under every allocator: a program that prints a Sample."""

    label: str
    command: tuple[str, ...]  # {seed} in it is the round
    threads: int = 1
    timeout: float = 300


def over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


@dataclass(frozen=True)
class Sample:
    """The result of one run, as the program prints it. None is what does not apply."""

    workload: str
    library: str  # of the malloc that the program called
    threads: int
    ops: int
    seconds: float
    ns_per_op: float
    p50_ns: float | None
    p95_ns: float | None
    p99_ns: float | None
    handovers: int | None
    peak_rss_bytes: int | None
    faults: int  # this and hakmem's counters are of the measured time alone
    allocs: int | None
    cache_hits: int | None
    shared_locks: int | None
    shared_locks_contended: int | None
    claims: int | None
    big_hits: int | None = None
    big_misses: int | None = None
    cached_bytes: int | None = None  # in hakmem's thread caches, on average; of `adaptive` alone

    @property
    def big_hit_rate(self) -> float | None:
        """Of the mallocs above 1 MiB while BigCache was on."""
        return over(self.big_hits, (self.big_hits or 0) + (self.big_misses or 0))

    @property
    def hit_rate(self) -> float | None:
        """Of all mallocs, those above 1 MiB too, for which there are no thread caches."""
        return over(self.cache_hits, self.allocs)

    @property
    def faults_per_kop(self) -> float:
        return self.faults / self.ops * 1e3

    def per_mop(self, events: int | None) -> float | None:
        """A million ops, or mallocs where an op makes several."""
        return events / max(self.ops, self.allocs or 0) * 1e6 if events is not None else None


class RunFailed(Exception):
    """A run without a result; the text is how it ended and the last line that it wrote on stderr."""


class Hung(RunFailed):
    """A run that did not end."""


SIGNALS = {int(number): number.name for number in signal.Signals}  # of the real-time ones only the first and last
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def completed(command: Sequence[str], env: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """As subprocess.run; but a signal during the start waits for its end, and so leaves no process behind."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process, mask = None, signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        process = subprocess.Popen(command, env=env, text=True, errors="replace", **pipes)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        out, err = process.communicate(timeout=timeout)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if process and process.poll() is None:
            process.kill()
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_program(command: Sequence[str], allocator: Allocator, timeout: float) -> str:
    """Run a command under an allocator and return its stdout."""
    try:
        done = completed(command, allocator.environment(), timeout)
    except subprocess.TimeoutExpired:
        raise Hung(f"no end within {timeout:.0f} s") from None
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing on stderr")
    if done.returncode < 0:
        raise RunFailed(f"{SIGNALS.get(-done.returncode, f'signal {-done.returncode}')}: {last}")
    if done.returncode > 0:
        raise RunFailed(f"exit status {done.returncode}: {last}")
    if "cannot be preloaded" in done.stderr:
        raise RunFailed(last)  # ld.so only warns, and would go on with the system's malloc
    return done.stdout


@functools.cache
def workloads() -> str:
    """The program with the workloads, compiled if need be."""
    with contextlib.redirect_stdout(sys.stderr):
        return str(build.workloads())


def workload(name: str, threads: int, seconds: float, *keys: str, label: str = "") -> Case:
    """A row of the table in _bench_workloads.c, with its keys."""
    command = (workloads(), name, f"threads={threads}", f"seconds={seconds}", "seed={seed}", *keys)
    return Case(label or name, command, threads, timeout=10 + 10 * seconds)


def run_case(case: Case, allocator: Allocator, seed: int = 1) -> Sample:
    command = [word.replace("{seed}", str(seed)) for word in case.command]
    output = run_program(command, allocator, case.timeout)
    try:
        sample = Sample(**json.loads(output))
    except (ValueError, TypeError):
        raise RunFailed(f"not a result: {output[:80]!r}") from None
    if allocator.is_hakmem and sample.allocs is None:
        raise RunFailed("hakmem is not in the process (no hak_stat)")
    if allocator.library and not Path(sample.library).resolve() == allocator.library.resolve():
        raise RunFailed(f"the program's malloc is that of {sample.library}")
    return sample


def progress(text: str) -> None:
    """One line on stderr that the next overwrites; nothing unless somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# ---- Rows


@dataclass
class Row:
    """A line of the result; the names are the keys of the JSON. None is what does not apply, or failed."""

    workload: str
    threads: int
    allocator: str
    ns_per_op: float | None = None
    ops_per_s: float | None = None
    ratio_system: float | None = None
    ratio_best_peer: float | None = None
    ratio_min: float | None = None  # the range of ratio_system over the rounds
    ratio_max: float | None = None
    ratio_best_peer_min: float | None = None
    ratio_best_peer_max: float | None = None
    p50_ns: float | None = None
    p95_ns: float | None = None
    p99_ns: float | None = None
    peak_rss_bytes: float | None = None
    rss_ratio_system: float | None = None
    rss_ratio_leanest_peer: float | None = None
    faults: float | None = None  # while it was measured, so the more the more ops there were
    faults_per_kop: float | None = None
    hit_rate: float | None = None  # 0 to 1
    big_hit_rate: float | None = None  # 0 to 1, of BigCache
    locks_per_mop: float | None = None
    contended_per_mop: float | None = None
    claims_per_mop: float | None = None
    instructions: float | None = None
    runs: int = 0
    is_peer: bool = False
    best_peer: str | None = None
    handovers: float | None = None
    cached_bytes: float | None = None
    library: str | None = None  # whose malloc it was
    ns_per_op_runs: list[float] = field(default_factory=list)  # by round
    failure: str | None = None


def case_name(label: str, threads: int) -> str:
    return label if threads == 1 else f"{label}, {threads} threads"


Job = tuple[Case, Sequence[Allocator]]


def measure(jobs: Iterable[Job], runs: int) -> list[Row]:
    """Every case under its allocators, in turns; who fails a case is not run in it again, who hangs not at all."""
    planned = [(case, [a for a in allocators if case.threads == 1 or not a.one_thread]) for case, allocators in jobs]
    rows: list[Row] = []
    hung: dict[str, str] = {}
    start, done, total = time.monotonic(), 0, sum(len(allocators) for _, allocators in planned) * runs
    if not total:
        raise stop("with these options there is nothing to run")
    for case, allocators in planned:
        what = case_name(case.label, case.threads)
        samples: dict[str, list[Sample]] = {allocator.name: [] for allocator in allocators}
        failures = {name: f"not run: hung in {where}" for name, where in hung.items() if name in samples}
        count = len(allocators)  # another one first in every round, since the first follows what ran before
        turns = [(n, allocators[(n + i) % count]) for n in range(runs) for i in range(count)]
        for round_, allocator in turns:
            left = f"{(time.monotonic() - start) / done * (total - done):.0f} s to go" if done else ""
            done += 1
            progress(f"[{done}/{total}] {what}: {allocator.name}  {left}")
            if allocator.name not in failures:
                try:
                    samples[allocator.name].append(run_case(case, allocator, round_ + 1))
                except RunFailed as failure:
                    failures[allocator.name] = f"run {round_ + 1}: {failure}"
                    if isinstance(failure, Hung):
                        hung[allocator.name] = what
        rows += summarise(case, allocators, samples, failures)
    progress("")
    return rows


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def summarise(
    case: Case, allocators: Sequence[Allocator], samples: dict[str, list[Sample]], failures: dict[str, str]
) -> list[Row]:
    """One row for each allocator. Times are compared round by round, peaks, which hardly vary, by their medians."""
    times = {name: median(s.ns_per_op for s in own) for name, own in samples.items() if name not in failures}
    peers = [a.name for a in allocators if a.name != SYSTEM and not a.is_hakmem]
    best = min((name for name in peers if name in times), key=times.__getitem__, default=None)

    def ratios(name: str, base: str | None) -> list[float]:
        """Time over time, round by round."""
        return [a.ns_per_op / b.ns_per_op for a, b in zip(samples[name], samples[base])] if base in times else []

    rows = []
    for name, own in samples.items():
        row = Row(case.label, case.threads, name, runs=len(own), best_peer=best, failure=failures.get(name))
        row.is_peer = name in peers
        rows.append(row)
        if row.failure:
            continue
        to_system, to_best = ratios(name, SYSTEM), ratios(name, best)
        row.ns_per_op, row.ops_per_s = times[name], 1e9 / times[name]
        row.ns_per_op_runs, row.library = [s.ns_per_op for s in own], own[0].library
        row.ratio_system, row.ratio_best_peer = middle(to_system), middle(to_best)
        row.ratio_min, row.ratio_max = min(to_system, default=None), max(to_system, default=None)
        row.ratio_best_peer_min, row.ratio_best_peer_max = min(to_best, default=None), max(to_best, default=None)
        for same in (
            "p50_ns",
            "p95_ns",
            "p99_ns",
            "peak_rss_bytes",
            "faults",
            "faults_per_kop",
            "hit_rate",
            "big_hit_rate",
            "handovers",
            "cached_bytes",
        ):
            setattr(row, same, middle(getattr(s, same) for s in own))
        row.locks_per_mop = middle(s.per_mop(s.shared_locks) for s in own)
        row.contended_per_mop = middle(s.per_mop(s.shared_locks_contended) for s in own)
        row.claims_per_mop = middle(s.per_mop(s.claims) for s in own)
    system = next((row.peak_rss_bytes for row in rows if row.allocator == SYSTEM), None)
    leanest = min((row.peak_rss_bytes for row in rows if row.is_peer and row.peak_rss_bytes), default=None)
    for row in rows:
        row.rss_ratio_system = over(row.peak_rss_bytes, system)
        row.rss_ratio_leanest_peer = over(row.peak_rss_bytes, leanest)
    return rows


# ---- Tables


def cell(value: float | None, form: str, scale: float = 1) -> str:
    return "" if value is None else format(value * scale, form)


def scaled(value: float | None, units: Sequence[str]) -> str:
    """Three digits and the unit, each of which is a thousand of the one before."""
    if value is None:
        return ""
    rank = 0
    while value >= 999.5 and rank < len(units) - 1:
        value, rank = value / 1000, rank + 1
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {units[rank]}".rstrip()


def span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.2f}-{high:.2f}"


RATE, TIME = ("", "k", "M", "G"), ("ns", "us", "ms", "s")

# heading: a row's text under it
COLUMNS: dict[str, Callable[[Row], str]] = {
    "workload": lambda r: r.workload,
    "threads": lambda r: str(r.threads),
    "allocator": lambda r: r.allocator,
    "ops/s": lambda r: "failed" if r.failure else scaled(r.ops_per_s, RATE),
    "time/op": lambda r: scaled(r.ns_per_op, TIME),
    "/ system": lambda r: cell(r.ratio_system, ".2f"),
    "range": lambda r: span(r.ratio_min, r.ratio_max),
    "/ best peer": lambda r: cell(r.ratio_best_peer, ".2f"),
    "its range": lambda r: span(r.ratio_best_peer_min, r.ratio_best_peer_max),
    "p50": lambda r: scaled(r.p50_ns, TIME),
    "p95": lambda r: scaled(r.p95_ns, TIME),
    "p99": lambda r: scaled(r.p99_ns, TIME),
    "RSS MB": lambda r: cell(r.peak_rss_bytes, ".1f", 1e-6),
    "faults/kop": lambda r: scaled(r.faults_per_kop, RATE) if r.faults else cell(r.faults, ".0f"),
    "hit %": lambda r: cell(r.hit_rate, ".2f", 100),
    "big hit %": lambda r: cell(r.big_hit_rate, ".2f", 100),
    "locks/Mop": lambda r: scaled(r.locks_per_mop, RATE),
    "failure": lambda r: r.failure or "",
}


def tabulated(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    to_the_left = ("workload", "tier", "allocator", "setting", "failure", "library", "install")
    align = ["left" if heading in to_the_left else "right" for heading in headings]
    return tabulate(lines, headings, disable_numparse=True, colalign=align)


def time_table(rows: Sequence[Row]) -> str:
    """A column that is empty in every row is left out."""
    columns = {heading: [text(row) for row in rows] for heading, text in COLUMNS.items()}
    shown = {heading: column for heading, column in columns.items() if any(column)}
    return tabulated(list(shown), list(zip(*shown.values())))


def by_case(rows: Iterable[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """The rows that did not fail, by what was run and allocator."""
    cases: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.workload, row.threads), {})
        if not row.failure:
            cases[row.workload, row.threads][row.allocator] = row
    return cases


# heading: the ratio of which the geometric mean is shown under it
MEANS: dict[str, Callable[[Row], float | None]] = {
    "time / system": lambda r: r.ratio_system,
    "RSS / system": lambda r: r.rss_ratio_system,
    "time / best peer": lambda r: r.ratio_best_peer,
    "RSS / leanest peer": lambda r: r.rss_ratio_leanest_peer,
}


def means_table(rows: Sequence[Row]) -> str:
    """The geometric means of every allocator over the cases that it ran."""
    lines = []
    for name in dict.fromkeys(row.allocator for row in rows):
        own = [row for row in rows if row.allocator == name and not row.failure]
        columns = ([ratio for ratio in map(ratio_of, own) if ratio] for ratio_of in MEANS.values())
        lines.append([name, str(len(own)), *(cell(geometric_mean(c), ".2f") if c else "" for c in columns)])
    table = tabulated(["allocator", "cases", *MEANS], lines)
    return f"Geometric means over the cases that each ran:\n\n{table}"


FLOOR = 1.15  # by so much two copies of one allocator may differ in a row: see the measurement in the docstring


def behind(rows: Iterable[Row]) -> str:
    """Where the best peer is faster, worst first, apart from what may be chance; nothing where it never is."""
    found = [(row.ratio_best_peer, row) for row in rows if row.allocator == HAKMEM and row.ratio_best_peer]
    slower, ties = [], []
    for ratio, row in sorted(found, key=lambda pair: -pair[0]):
        text = f"{case_name(row.workload, row.threads)} ({ratio:.2f}, {row.best_peer})"
        if ratio >= FLOOR and (row.ratio_best_peer_min or 0) > 1:
            slower.append(text)
        elif ratio >= 1.005:
            ties.append(text)
    texts = {
        "hakmem takes longer than the best peer in": slower,
        f"longer, but by less than {FLOOR} or not in every round, which may be chance, in": ties,
    }
    return "".join(f"\n\n{heading}: {'; '.join(cases)}" for heading, cases in texts.items() if cases)


def not_handed_on(rows: Iterable[Row]) -> str:
    """larson's chains, one a thread, that were too slow for a single hand-over each."""
    short = [r for r in rows if r.handovers is not None and r.handovers < r.threads]
    texts = [f"{case_name(r.workload, r.threads)}, {r.allocator} ({r.handovers:.0f})" for r in short]
    return f"\n\nfewer hand-overs than threads, so few frees by other threads, in: {'; '.join(texts)}" if texts else ""


def times(rows: Sequence[Row]) -> str:
    return f"{time_table(rows)}\n\n{means_table(rows)}{behind(rows)}{not_handed_on(rows)}"


# ---- Workloads by subcommand


@dataclass(frozen=True)
class Timed:
    """Workloads of _bench_workloads that one subcommand runs."""

    help: str
    workloads: tuple[str, ...]
    threads: tuple[int, ...]
    teams_of: int = 1  # of which --threads must be a multiple


SCENARIOS = ("scenario-json", "scenario-mir", "scenario-vm", "scenario-mixed")

BIG_SCENARIO = "scenario-vm"  # the one whose blocks are above 1 MiB


def without_bigcache(allocator: Allocator) -> Iterator[Allocator]:
    """hakmem once more, with BigCache off: what is left is the page heap, which keeps free memory as well."""
    if allocator.name == HAKMEM:
        variables = {**allocator.variables, "HAKMEM_BIGCACHE": "0"}
        yield replace(allocator, name=f"{HAKMEM} without BigCache", variables=variables)


TIMED = {
    "larson": Timed(
        "a server: 8-1,024 bytes; threads replace and hand on their blocks, after 500,000 ops as in the published "
        "suites (2%% of the frees are then of another thread's block), and in larson-relay after 50,000 (20%%)",
        ("larson", "larson-relay"),
        (1, 4, 16, 32),
    ),
    "mixed": Timed("random replacement, 8,192 blocks of 16-1,024 bytes a thread", ("mixed",), (1, 4)),
    "mid": Timed("the same with 8-32 KiB", ("mid",), (1, 4)),
    "large": Timed("the same with 64 KiB-8 MiB", ("large",), (1, 4)),
    "scenarios": Timed("requests of services and compilers, each timed: median, p95, p99", SCENARIOS, (1,)),
    "prodcons": Timed("pairs of threads: one allocates, the other frees", ("prodcons", "prodcons-mid"), (2, 4), 2),
    "churn": Timed("short-lived threads that leave blocks to later ones", ("churn",), (1, 4)),
    "realloc": Timed("buffers that grow by appending", ("realloc", "realloc-large"), (1,)),
}

# quick's share of them: the threads of each, and how many times as long it runs as the others
QUICK = (
    *(("larson", 1, 1), ("larson", 4, 1), ("larson-relay", 4, 1), ("mixed", 1, 1), ("mixed", 4, 1), ("mid", 1, 1)),
    *(("large", 1, 1), ("scenario-json", 1, 1), ("scenario-vm", 1, 1), ("prodcons", 2, 3), ("prodcons-mid", 2, 2)),
    *(("churn", 2, 1), ("realloc", 1, 1), ("realloc-large", 1, 1)),
)

# what suites that people know stress, by workloads of our own, and the threads of each
SUITES = (
    *(("handoff", 4), ("handoff", 8), ("handoff", 32), ("stress", 2), ("stress", 8), ("passes", 2), ("passes", 16)),
    *(("pareto", 1), ("pareto", 2), ("simple", 1), ("simple", 2), ("skewed", 1), ("skewed", 2), ("leak", 10)),
    *(("big", 1), ("big-one", 1), ("scratch", 1), ("scratch", 2), ("numbers", 1)),
)


def timed_jobs(name: str, options: argparse.Namespace, allocators: Sequence[Allocator]) -> Iterator[Job]:
    """A subcommand's workloads, at --threads where it has that option."""
    table = TIMED[name]
    for label in table.workloads:
        more = [without for own in allocators if label == BIG_SCENARIO for without in without_bigcache(own)]
        for threads in getattr(options, "threads", table.threads):
            yield workload(label, threads, options.seconds), [*allocators, *more]


def suites_jobs(options: argparse.Namespace, allocators: Sequence[Allocator]) -> Iterator[Job]:
    """what the allocator suites that people know stress, by workloads of our own, each at its threads"""
    for name, threads in SUITES:
        yield workload(name, threads, options.seconds), allocators


# ---- Python programs: each defines work(), a round of which is an op, and `kept`, what so many rounds leave behind

PYTHON_PROGRAMS = {
    "python-objects": """
kept = [None] * 16
def work():
    table = {key: (key * 1.5, str(key), [key]) for key in range(5_000)}
    for key in range(0, 5_000, 2):
        del table[key]
    kept.append([(value, name * 2, {"tags": tags}) for value, name, tags in table.values()])
    del kept[0]
""",
    "python-json": """
import json
people = [{"id": i, "name": f"person {i}", "tags": [str(t) for t in range(i % 7)], "at": {"x": i / 7, "y": None}}
          for i in range(2_000)]
kept = [None] * 8
def work():
    kept.append(json.loads(json.dumps(people)))
    del kept[0]
""",
    "python-strings": """
import re
text = " ".join(f"word{i * i % 997} and{i % 31},{'x' * (i % 60)}" for i in range(6_000))
kept = [None]
def work():
    counts = {}
    for word in re.findall(r"\\w+", text):
        counts[word] = counts.get(word, 0) + 1
    lines = [f"{word:>20} {count}" for word, count in counts.items()]
    lines += re.sub(r"(\\w+) and", r"\\1 or", text).upper().split(",")
    kept[0] = "\\n".join(sorted(lines))
""",
    "python-numpy": """
import numpy
chance = numpy.random.default_rng(1)
sizes = [int(2 ** chance.uniform(8, 20)) for _ in range(40)]
kept = [None] * 8
def work():
    for i, size in enumerate(sizes):
        a = numpy.arange(size, dtype=float)
        kept[i % 8] = (a * 2 + a[::-1]).astype("float32") - 1
""",
}

PYTHON_REPORT = """
import ctypes, json, resource, sys, time
c = ctypes.CDLL(None)
hak_stat = getattr(c, "hak_stat", None)
if hak_stat:
    hak_stat.restype, hak_stat.argtypes = ctypes.c_uint64, [ctypes.c_char_p]
def count():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    told = {name: hak_stat(name.encode()) if hak_stat else 2**64 - 1 for name in sys.argv[3:]}  # that: not known
    return {"faults": usage.ru_minflt + usage.ru_majflt, **told}
for _ in kept:
    work()
ops, passed, before, start = 0, 0, count(), time.perf_counter()
while not ops or passed < float(sys.argv[2]):
    work()
    ops += 1
    passed = time.perf_counter() - start
counts = {name: None if value == 2**64 - 1 else value - before[name] for name, value in count().items()}
with open("/proc/self/status") as status:
    peak = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")]
malloc, library = ctypes.cast(c.malloc, ctypes.c_void_p).value, ""
with open("/proc/self/maps") as maps:
    for line in maps:
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= malloc < high:
            library = line.split(maxsplit=5)[5].rstrip("\\n")
print(json.dumps(dict(
    workload=sys.argv[1], library=library, threads=1, ops=ops, seconds=passed, ns_per_op=passed / ops * 1e9,
    p50_ns=None, p95_ns=None, p99_ns=None, handovers=None, peak_rss_bytes=peak[0] if peak else None, **counts)))
"""

PYTHON_VERSION = "import platform; print(platform.python_version())"


def python_runs(python: str, source: str, **variables: str) -> bool:
    try:
        run_program([python, "-c", source], Allocator(SYSTEM, variables=variables), timeout=60)
    except (RunFailed, OSError):
        return False
    return True


def python_allocators(options: argparse.Namespace, preloaded: Sequence[Allocator]) -> list[Allocator]:
    """All with PYTHONMALLOC=malloc, then those of PYTHONS that the interpreter has and --only names."""
    allocators = [replace(a, variables={**a.variables, "PYTHONMALLOC": "malloc"}) for a in preloaded]
    for name, value in PYTHONS.items():
        if not options.only or name in options.only:
            if python_runs(options.python, "", PYTHONMALLOC=value):
                allocators.append(Allocator(name, None, {**dict(options.env), "PYTHONMALLOC": value}))
            elif options.only:
                raise stop(f"{options.python} knows no PYTHONMALLOC={value}")
    return allocators


def python_jobs(options: argparse.Namespace, preloaded: Sequence[Allocator], *programs: str) -> Iterator[Job]:
    """The programs, or those named; the one that needs NumPy only where the interpreter has it."""
    allocators = python_allocators(options, preloaded)
    for label in programs or PYTHON_PROGRAMS:
        if label == "python-numpy" and not python_runs(options.python, "import numpy"):
            print(f"{PROGRAM}: python-numpy is left out: {options.python} has no NumPy", file=sys.stderr)
            continue
        source = PYTHON_PROGRAMS[label] + PYTHON_REPORT
        program = (options.python, "-c", source, label, str(options.seconds), *COUNTERS)
        yield Case(label, ("env", "PYTHONHASHSEED={seed}", *program), timeout=10 + 10 * options.seconds), allocators


# ---- Phases: what each layer of thread caches brings

NOLOCK, P0 = "nolock", "P0"
PHASE_THREADS = (1, 4, 16)

SWITCHES = ("HAKMEM_ENABLE_TLS", "HAKMEM_TLS_TINY", "HAKMEM_TLS_L2", "HAKMEM_TLS_L25")

# column: (hakmem's variant, None for the system's malloc; what each of SWITCHES is)
PHASES: dict[str, tuple[str | None, str]] = {
    SYSTEM: (None, ""),
    NOLOCK: ("nolock", "0000"),  # P0's paths without its lock, so that P0 / nolock is the lock
    P0: ("release", "0000"),
    "+P1": ("release", "1100"),
    "+P2": ("release", "1110"),
    "+P3": ("release", "1111"),
}

# tier: keys of the engine of `mixed`. Only the ends of blocks are written: the tiers are compared, not the memory
ENDS = f"touch={10**9}"
TIERS = {
    "tiny": ("min=16", "max=1024", "slots=8192", ENDS),
    "l2": ("min=1025", "max=32768", "slots=512", ENDS),
    "l25": ("min=32769", "max=1048576", "slots=64", ENDS),
    "whale": ("min=1048577", "max=4194304", "slots=16", ENDS),
}


def phase_jobs(options: argparse.Namespace, threads: Sequence[int], only: Sequence[str] | None) -> Iterator[Job]:
    allocators = []
    for name in choose(list(PHASES), only):
        variant, switches = PHASES[name]
        library = hakmem_library(variant) if variant else None
        variables = {**dict(options.env), **dict(zip(SWITCHES, switches))}
        allocators.append(Allocator(name, library, variables, is_hakmem=library is not None, one_thread=name == NOLOCK))
    for tier, keys in TIERS.items():
        for count in threads:
            yield workload("mixed", count, options.seconds, *keys, label=tier), allocators


def pivot(title: str, rows: Sequence[Row], text: Callable[[Row], str], what: str = "tier") -> str:
    """Tiers (or what the rows are) and threads down, allocators across."""
    names = list(dict.fromkeys(row.allocator for row in rows))
    failed = {(row.workload, row.threads, row.allocator) for row in rows if row.failure}
    lines = [
        [*map(str, case), *(text(own[n]) if n in own else "failed" if (*case, n) in failed else "-" for n in names)]
        for case, own in by_case(rows).items()
    ]
    return f"{title}\n\n{tabulated([what, 'threads', *names], lines)}"


def lock_cost(rows: Iterable[Row]) -> str:
    """P0 over nolock, round by round, at one thread; and P0 at four threads over P0 at one."""
    cases = by_case(rows)
    alone = {tier: own for (tier, threads), own in cases.items() if threads == 1 and P0 in own}
    four = {tier: own for (tier, threads), own in cases.items() if threads == 4 and P0 in own}

    def ratio(over: Row, base: Row) -> str:
        return cell(middle(a / b for a, b in zip(over.ns_per_op_runs, base.ns_per_op_runs)), ".2f")

    costs = [f"{tier} {ratio(own[P0], own[NOLOCK])}" for tier, own in alone.items() if NOLOCK in own]
    shared = [f"{tier} {ratio(own[P0], alone[tier][P0])}" for tier, own in four.items() if tier in alone]
    lines = {
        "P0's lock at one thread, time over that without the lock": costs,
        "P0 at four threads, time over that at one": shared,
    }
    return "\n".join(f"{heading}: {', '.join(texts)}" for heading, texts in lines.items() if texts)


def phase_tables(rows: Sequence[Row]) -> str:
    alone = {(r.workload, r.allocator): r.ops_per_s for r in rows if r.threads == 1 and r.ops_per_s}

    def scaling(row: Row) -> str:
        one = alone.get((row.workload, row.allocator))
        return cell(row.ops_per_s, ".2f", 1 / one) if one else "-"

    tables = [
        pivot("Operations a second", rows, lambda r: scaled(r.ops_per_s, RATE)),
        pivot("Time / system", rows, lambda r: cell(r.ratio_system, ".2f") or "-"),
        pivot("Operations a second / those at one thread", rows, scaling),
        pivot("Mallocs that a thread cache served, %", rows, lambda r: cell(r.hit_rate, ".2f", 100) or "-"),
        lock_cost(rows),
        "\n".join(f"{case_name(r.workload, r.threads)}: {r.allocator}: {r.failure}" for r in rows if r.failure),
    ]
    return "\n\n".join(filter(None, tables))


# ---- Scaling: more threads than processors

SCALING = ("larson", "prodcons", "mixed")
SCALING_THREADS = (1, 2, 4, 8, 16, 32)
AGAINST = 4  # threads with which those of more are compared: as many processors stay busy


def scaling_jobs(options: argparse.Namespace, allocators: Sequence[Allocator]) -> Iterator[Job]:
    """larson, prodcons (from two threads on) and mixed."""
    for label in SCALING:
        for threads in options.threads:
            if threads % TIMED[label].teams_of == 0:
                yield workload(label, threads, options.seconds), allocators


def scaling_tables(rows: Sequence[Row]) -> str:
    base = {(r.workload, r.allocator): r.ns_per_op_runs for r in rows if r.threads == AGAINST}

    def throughput(row: Row) -> str:
        """Over that with four threads, round by round."""
        four = base.get((row.workload, row.allocator), [])
        return cell(middle(before / now for before, now in zip(four, row.ns_per_op_runs)), ".2f") or "-"

    ours = [row for row in rows if row.allocator == HAKMEM and not row.failure]
    events: dict[str, list[float | None]] = {
        "shared locks": [r.locks_per_mop for r in ours],
        "of them waited for": [r.contended_per_mop for r in ours],
        "claims": [r.claims_per_mop for r in ours],
        "hit %": [(r.hit_rate or 0) * 100 for r in ours],
    }
    lines = [
        [row.workload, str(row.threads), *(cell(column[i], ".2f") for column in events.values())]
        for i, row in enumerate(ours)
    ]
    locks = f"hakmem's locks in a million operations\n\n{tabulated(['workload', 'threads', *events], lines)}"
    tables = [
        time_table(rows),
        pivot(f"Operations a second / those with {AGAINST} threads", rows, throughput, "workload"),
        locks if ours else "",
    ]
    return "\n\n".join(filter(None, [*tables, f"{means_table(rows)}{behind(rows)}{not_handed_on(rows)}"]))


# ---- Instructions

# label: (workload and keys, what hakmem's malloc and free may take at most, loop and PLT included)
LOOPS = {
    "64 B": (("pairs", "size=64"), 48),
    "1 KiB": (("pairs", "size=1024"), 48),
    "16 KiB": (("pairs", "size=16384"), 50),
    "256 KiB": (("pairs", "size=262144"), 70),
    "calloc 64 B": (("calloc", "size=64"), 60),
    "burst of 64": (("burst", "size=64"), 50),
}
FEW, MANY = 6_400, 70_400  # pairs; the difference of two runs leaves start-up and warm-up out


def count_instructions(loop: Sequence[str], allocator: Allocator, pairs: int) -> int:
    """The instructions of a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={log}"]
        run_program([*tool, workloads(), *loop, f"n={pairs}"], allocator, timeout=300)
        collected = re.search(r"Collected : (\d+)", log.read_text(errors="replace"))
    if not collected:
        raise RunFailed("callgrind gave no count")
    return int(collected[1])


def count_pair(label: str, allocator: Allocator) -> Row:
    row = Row(label, 1, allocator.name, runs=1)
    progress(f"{label}, {allocator.name}")
    try:
        few, many = (count_instructions(LOOPS[label][0], allocator, pairs) for pairs in (FEW, MANY))
        row.instructions = (many - few) / (MANY - FEW)
    except RunFailed as failure:
        row.failure = str(failure)
    return row


def verdict(row: Row, budget: int) -> str:
    if row.instructions is None:
        return "failed"
    excess = round(row.instructions) - budget  # slow paths depend on the clock: a count may differ by 0.4
    return "ok" if excess <= 0 else f"over by {excess}"


def instruction_table(rows: Sequence[Row]) -> str:
    """Allocators by loops, then the budget and whether hakmem keeps it."""
    by_allocator: dict[str, list[Row]] = {}
    for row in rows:
        by_allocator.setdefault(row.allocator, []).append(row)
    lines = [[name, *(cell(row.instructions, ".1f") or "failed" for row in own)] for name, own in by_allocator.items()]
    budgets = [budget for _, budget in LOOPS.values()]
    lines.append(["aim", *map(str, budgets)])
    if HAKMEM in by_allocator:
        lines.append(["hakmem keeps it", *map(verdict, by_allocator[HAKMEM], budgets)])
    failures = [f"failed: {row.allocator}, {row.workload}: {row.failure}" for row in rows if row.failure]
    return "\n".join([tabulated(["allocator", *LOOPS], lines), *failures])


# ---- Owner look-up

REGISTRY = "HAKMEM_USE_REGISTRY"
WAYS = {"arithmetic": "0", "registry": "1", "scan": "2"}  # from a pointer to its slab: what REGISTRY is then
ACCESS = {"random": "0", "repeated": "1"}
LOOKUP_SECONDS = 0.05
SLABS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
CLAIM = (2.9, 13.7, (8, 16, 32))  # the original's: scanning is so many times faster than hashing for so many slabs


def lookup_case(slabs: int, access: str) -> str:
    return f"{slabs} slabs, {access}"


def lookup_jobs(options: argparse.Namespace, only: Sequence[str] | None) -> Iterator[Job]:
    library, names = hakmem_library(), choose(list(WAYS), only)
    variables = [{**dict(options.env), REGISTRY: WAYS[name]} for name in names]
    ways = [Allocator(name, library, own, is_hakmem=True) for name, own in zip(names, variables)]
    for access, repeat in ACCESS.items():
        for slabs in SLABS:
            keys = (f"seconds={options.seconds}", "seed={seed}", f"slabs={slabs}", f"repeat={repeat}")
            command = (workloads(), "lookup", *keys)
            yield Case(lookup_case(slabs, access), command, timeout=10 + 10 * options.seconds), ways


def hash_over_scan(rows: Iterable[Row]) -> dict[tuple[str, int], float]:
    """How many times faster scanning is than hashing: the median of the rounds' ratios, by access and slabs."""
    cases, ratios = by_case(rows), {}
    for access in ACCESS:
        for slabs in SLABS:
            own = cases.get((lookup_case(slabs, access), 1), {})
            if "registry" in own and "scan" in own:
                pairs = zip(own["registry"].ns_per_op_runs, own["scan"].ns_per_op_runs)
                ratios[access, slabs] = median(hashed / scanned for hashed, scanned in pairs)
    return ratios


def crossover(ratios: dict[tuple[str, int], float], access: str) -> str:
    """From where on the scan is the slower one, at every larger number of slabs measured."""
    own = sorted((slabs, ratio) for (of, slabs), ratio in ratios.items() if of == access)
    faster = [slabs for slabs, ratio in own if ratio >= 1]
    slower = [slabs for slabs, _ in own if not faster or slabs > faster[-1]]
    if not slower:
        return f"{access}: the scan is never slower than the registry, up to {own[-1][0]} slabs"
    fewer = "" if faster else ", the fewest measured,"
    return f"{access}: the scan is slower than the registry from {slower[0]} slabs{fewer} on"


def claim(ratios: dict[tuple[str, int], float]) -> str:
    """Whether what the original says of scan and hash is so here."""
    low, high, where = CLAIM
    found = {of: [ratios[of, slabs] for slabs in where if (of, slabs) in ratios] for of in ACCESS}
    told = [ratio for own in found.values() for ratio in own]
    holds = "holds" if min(told) >= low else "does not hold" if max(told) < low else "holds in part"
    texts = [f"{of} {', '.join(cell(ratio, '.2g') for ratio in own)}" for of, own in found.items()]
    return (
        f"The original's claim, that scanning is {low}-{high} times faster than hashing for {where[0]}-{where[-1]} "
        f"slabs, {holds} here: at {', '.join(map(str, where))} slabs it is so many times faster: {'; '.join(texts)}."
    )


def lookup_tables(rows: Sequence[Row]) -> str:
    """Nanoseconds of a look-up, where scan and registry cross, and what is left of the claim."""
    names, cases, ratios = list(dict.fromkeys(row.allocator for row in rows)), by_case(rows), hash_over_scan(rows)
    texts = []
    for access in ACCESS:
        lines = []
        for slabs in SLABS:
            own = cases.get((lookup_case(slabs, access), 1), {})
            times = [cell(own[name].ns_per_op, ".2f") if name in own else "failed" for name in names]
            lines.append([str(slabs), *times, cell(ratios.get((access, slabs)), ".2g")])
        table = tabulated(["slabs", *names, "registry / scan"], lines)
        texts.append(f"Nanoseconds of a look-up, {access} access\n\n{table}")
    compared = dict.fromkeys(access for access, _ in ratios)
    texts.append("\n".join(crossover(ratios, access) for access in compared))
    if all((access, slabs) in ratios for access in ACCESS for slabs in CLAIM[2]):
        texts.append(claim(ratios))
    texts.append("\n".join(f"{r.workload}: {r.allocator}: {r.failure}" for r in rows if r.failure))
    return "\n\n".join(filter(None, texts))


# ---- Adaptive sizes of thread caches, and caches filled before first use

SIZINGS = {  # setting: what hakmem is told
    "adaptive": {"HAKMEM_ADAPTIVE_SIZING": "1", "HAKMEM_CACHE_FIRST": "0"},
    "fixed 64": {"HAKMEM_ADAPTIVE_SIZING": "0", "HAKMEM_CACHE_FIRST": "0"},
    "fixed 256": {"HAKMEM_ADAPTIVE_SIZING": "0", "HAKMEM_CACHE_FIRST": "256"},
    "limit 16M": {"HAKMEM_ADAPTIVE_SIZING": "1", "HAKMEM_CACHE_FIRST": "0", "HAKMEM_CACHE_LIMIT": "16M"},
}
WARMTHS = {f"prewarm={level}": {"HAKMEM_PREWARM_TLS": str(level)} for level in (0, 1, 2)}
SETTINGS = {"adaptive": SIZINGS, "prewarm": WARMTHS}  # of one library; the first is what the others are compared with
SETTINGS_CASES = {
    "adaptive": (("hot-class", 1), ("phase-change", 1), ("phase-change", 4), ("idle-threads", 64)),
    "prewarm": (("first-call", 200), ("first-of-class", 100), ("first-thousand", 100)),
}


def settings_jobs(options: argparse.Namespace) -> Iterator[Job]:
    """The subcommand's cases under each of its settings."""
    settings = SETTINGS[options.benchmark]
    library, given = hakmem_library(), dict(options.env)
    names = choose(list(settings), options.only)
    allocators = [Allocator(name, library, {**given, **settings[name]}, is_hakmem=True) for name in names]
    for label, threads in SETTINGS_CASES[options.benchmark]:
        yield workload(label, threads, options.seconds), allocators


def settings_table(rows: Sequence[Row]) -> str:
    """Time and claims beside memory; ratios to the first setting, round by round."""
    base = {(row.workload, row.threads): row for row in reversed(rows)}
    columns: dict[str, Callable[[Row], str]] = {
        **{name: COLUMNS[name] for name in ("workload", "threads")},
        "setting": lambda r: r.allocator,
        "time/op": COLUMNS["time/op"],
        "/ first": lambda r: cell(
            middle(a / b for a, b in zip(r.ns_per_op_runs, base[r.workload, r.threads].ns_per_op_runs)), ".2f"
        ),
        **{name: COLUMNS[name] for name in ("p50", "p99", "hit %")},
        "claims/Mop": lambda r: scaled(r.claims_per_mop, RATE),
        "cached KB": lambda r: cell(r.cached_bytes, ",.0f", 1e-3),
        **{name: COLUMNS[name] for name in ("RSS MB", "faults/kop", "failure")},
    }
    texts = {heading: [text(row) for row in rows] for heading, text in columns.items()}
    shown = {heading: column for heading, column in texts.items() if any(column)}
    return tabulated(list(shown), list(zip(*shown.values())))


# ---- The picture

COLOURS = {HAKMEM: "#d62728", "mimalloc": "#1f77b4", "jemalloc": "#2ca02c", "tcmalloc": "#ff9f0e"}
MORE_COLOURS = ("#9467bd", "#17becf", "#8c564b", "#e377c2", "#bcbd22", "#1a1a1a")


def plot(rows: Sequence[Row], path: str, title: str) -> None:
    """Time and peak RSS over the system's, side by side: a band for each case, a colour for each allocator.

    The scale is logarithmic, so that half and double lie equally far from 1, and a factor of twenty still fits.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # a file, no window
    import matplotlib.pyplot as plt

    cases = list(by_case(rows).items())
    names = [name for name in dict.fromkeys(row.allocator for row in rows) if name != SYSTEM]
    more = iter(MORE_COLOURS * len(names))
    colours = {name: COLOURS.get(name) or next(more) for name in names}
    size = (11, 1.7 + 0.36 * len(cases))
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=size, layout="constrained")
    for panel, heading in zip(panels, ("time / system", "RSS / system")):
        for line in range(0, len(cases), 2):
            panel.axhspan(line - 0.5, line + 0.5, color="#f3f3f3", linewidth=0)
        panel.axvline(1, color="#777777", linewidth=1.5, zorder=1)
        for rank, name in enumerate(names):
            lift = 0.6 * ((rank + 0.5) / len(names) - 0.5)
            points = [(MEANS[heading](own[name]), line + lift) for line, (_, own) in enumerate(cases) if name in own]
            known = [point for point in points if point[0]]
            big = 70 if name == HAKMEM else 38
            panel.scatter([x for x, _ in known], [y for _, y in known], big, colours[name], label=name, zorder=2)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}" if ratio >= 1 else f"1/{1 / ratio:g}")
        panel.set_xlabel(f"{'time' if panel is panels[0] else 'peak RSS'} / system, logarithmic; less is better")
        panel.grid(axis="x", color="#dddddd", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(cases)), [case_name(*case) for case, _ in cases])
    panels[0].set_ylim(len(cases) - 0.5, -0.5)
    figure.suptitle(title, fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(names)) or 1, frameon=False
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


# ---- The benchmarks


class Result(NamedTuple):
    """What a benchmark found, the text that shows it, and the rows that --plot draws."""

    rows: list[Row]
    text: str
    drawn: Sequence[Row] = ()


def timed(options: argparse.Namespace) -> Result:
    """The subcommands that differ in their jobs alone."""
    rows = measure(BENCHMARKS[options.benchmark].jobs(options, choose_allocators(options)), options.runs)
    return Result(rows, times(rows), rows)


def quick_jobs(options: argparse.Namespace, allocators: Sequence[Allocator]) -> Iterator[Job]:
    """a representative part of all kinds, in less than 90 seconds"""
    for name, threads, longer in QUICK:
        yield workload(name, threads, options.seconds * longer), allocators
    yield from python_jobs(options, allocators, "python-objects", "python-json")


def phases(options: argparse.Namespace) -> Result:
    """the specification's table: without locks, without caches, and with one tier's caches more at a time"""
    rows = measure(phase_jobs(options, options.threads, options.only), options.runs)
    return Result(rows, phase_tables(rows), rows)


def scaling(options: argparse.Namespace) -> Result:
    """1 to 32 threads: throughput against that with four, and how often threads took locks that they share"""
    rows = measure(scaling_jobs(options, choose_allocators(options)), options.runs)
    return Result(rows, scaling_tables(rows), rows)


def adaptive(options: argparse.Namespace) -> Result:
    """hakmem's thread caches of adaptive size beside fixed ones of 64 and of 256 blocks: time and memory"""
    rows = measure(settings_jobs(options), options.runs)
    return Result(rows, settings_table(rows))


def prewarm(options: argparse.Namespace) -> Result:
    """the first calls of new threads, with hakmem's thread caches empty, filled, and filled and touched"""
    rows = measure(settings_jobs(options), options.runs)
    return Result(rows, settings_table(rows))


NO_VALGRIND = "instructions are counted by valgrind: apt install valgrind | dnf install valgrind"


def instructions(options: argparse.Namespace) -> Result:
    """instructions that a malloc+free pair takes, by callgrind"""
    if not shutil.which("valgrind"):
        raise stop(NO_VALGRIND)
    allocators = choose_allocators(options)
    workloads()  # built before the threads start
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a count does not depend on what else runs
        jobs = [pool.submit(count_pair, label, allocator) for allocator in allocators for label in LOOPS]
        try:
            rows = [job.result() for job in jobs]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress("")
    return Result(rows, instruction_table(rows))


def lookup(options: argparse.Namespace) -> Result:
    """nanoseconds from a pointer to its slab, by arithmetic, hash registry and scan"""
    rows = measure(lookup_jobs(options, options.only), options.runs)
    return Result(rows, lookup_tables(rows))


def everything(options: argparse.Namespace) -> Result:
    """all of the others, one after the other; some twenty minutes"""
    allocators = choose_allocators(options)
    jobs = [job for name in TIMED for job in timed_jobs(name, options, allocators)]
    jobs += [*suites_jobs(options, allocators), *python_jobs(options, allocators)]
    ours = any(allocator.is_hakmem for allocator in allocators)  # the phases are hakmem's
    phase = list(phase_jobs(options, PHASE_THREADS, only=None)) if ours else []  # built before the first run
    rows = measure(jobs, options.runs)
    layers = measure(phase, options.runs) if phase else []
    short = argparse.Namespace(**{**vars(options), "seconds": min(options.seconds, LOOKUP_SECONDS)})
    owners = measure(lookup_jobs(short, None), options.runs) if ours else []
    if shutil.which("valgrind"):
        counts, text, _ = instructions(options)
    else:
        counts, text = [], f"left out: {NO_VALGRIND}"
    texts = [times(rows), phase_tables(layers), lookup_tables(owners) if owners else "", text]
    return Result([*rows, *layers, *owners, *counts], "\n\n".join(filter(None, texts)), rows)


def peers(options: argparse.Namespace) -> Result:
    """the allocators found on this machine, and how to install more"""
    found = find_peers(options.peer)
    lines = [[name, str(path), ""] for name, path in found.items()]
    lines += [[name, "not found", install] for name, (_, _, install) in PEERS.items() if name not in found]
    return Result([], tabulated(["allocator", "library", "install"], lines))


# ---- Sites: what a rule for the blocks that stay brings

STREWN, RULED = "strewn", "with a rule"
STREWN_RULE = {"HAKMEM_SITE_RULES": "1:lifetime=long"}


def site_table(rows: Sequence[Row]) -> str:
    base = {row.allocator: row for row in rows}.get(HAKMEM)
    figures = (("time", "ns_per_op"), ("RSS", "peak_rss_bytes"), ("faults", "faults"))
    lines = [
        [
            row.allocator,
            cell(row.ns_per_op, ".1f"),
            cell(row.peak_rss_bytes, ".1f", 1e-6),
            cell(row.faults, ",.0f"),
            *(cell(over(getattr(row, name), getattr(base, name, None)), ".2f") for _, name in figures),
            row.failure or "",
        ]
        for row in rows
    ]
    headings = ["allocator", "ns/op", "RSS MB", "faults", *(f"{title} / {HAKMEM}" for title, _ in figures), ""]
    return tabulated(headings, lines)


def sites(options: argparse.Namespace) -> Result:
    """RSS, faults and time where few blocks stay among many that go, without a rule for them and with one"""
    names = choose([SYSTEM, HAKMEM, RULED], options.only)
    ours = hakmem_library() if {HAKMEM, RULED} & set(names) else None
    allocators = [
        Allocator(
            name,
            ours if name != SYSTEM else None,
            {**dict(options.env), **(STREWN_RULE if name == RULED else {})},
            is_hakmem=name != SYSTEM,
        )
        for name in names
    ]
    rows = measure([(Case(STREWN, (workloads(), STREWN, "seed={seed}")), allocators)], options.runs)
    return Result(rows, site_table(rows))


# ---- ACE

ACE_MODES = ("off", "shadow", "on")
# workload, threads: three loads that change, then ordinary ones
ACE_LOADS = (
    *(("phases", 1), ("prodcons-phases", 2), ("waves", 1)),
    *(("mixed", 1), ("larson", 4), ("prodcons-mid", 2), ("churn", 2)),
)


def ace_jobs(options: argparse.Namespace) -> Iterator[Job]:
    library, given = hakmem_library(), dict(options.env)
    modes = choose(list(ACE_MODES), options.only)
    allocators = [Allocator(mode, library, {**given, "HAKMEM_ACE": mode}, is_hakmem=True) for mode in modes]
    for name, threads in ACE_LOADS:
        yield workload(name, threads, options.seconds), allocators


def ace_table(rows: Sequence[Row]) -> str:
    """Each load under each mode, and what the modes make of what `off` makes, round by round."""
    lines = []
    for (name, threads), own in by_case(rows).items():
        off = own.get("off")
        for mode, row in own.items():
            if row.failure:
                lines.append([name, str(threads), mode, row.failure, *[""] * 8])
                continue
            ratios = [a / b for a, b in zip(row.ns_per_op_runs, off.ns_per_op_runs)] if off else []
            of = (off.p50_ns, off.peak_rss_bytes) if off else (None, None)
            lines.append(
                [
                    *(name, str(threads), mode, scaled(row.ops_per_s, RATE)),
                    cell(over(row.p50_ns, of[0]) if name == "waves" else middle(ratios), ".2f"),
                    span(min(ratios, default=None), max(ratios, default=None)) if name != "waves" else "-",
                    cell(row.peak_rss_bytes, ".1f", 2**-20),
                    cell(over(row.peak_rss_bytes, of[1]), ".2f"),
                    cell(row.faults_per_kop, ".3g"),
                    cell(row.hit_rate, ".2f", 100),
                    *(cell(row.locks_per_mop, ",.0f"), cell(row.claims_per_mop, ",.0f")),
                ]
            )
    head = ["workload", "threads", "ace", "ops/s", "time / off", "range", "RSS MB", "/ off", "faults/kop", "hit %"]
    note = "waves: the time is that of the median wave, without the pause behind it"
    return f"{tabulated([*head, 'locks/Mop', 'claims/Mop'], lines)}\n\n{note}"


def ace(options: argparse.Namespace) -> Result:
    """the learning thread: off, in shadow (it only says what it would do) and on, over loads that change"""
    rows = measure(ace_jobs(options), options.runs)
    return Result(rows, ace_table(rows))


# ---- Command line


@dataclass(frozen=True)
class Benchmark:
    """A subcommand: what it does, and the options that it has with their defaults."""

    run: Callable[[argparse.Namespace], Result]
    help: str
    defaults: dict[str, Any]
    jobs: Callable[[argparse.Namespace, Sequence[Allocator]], Iterable[Job]] = lambda *_: ()  # of `timed`


OUTPUT: dict[str, Any] = {"only": None, "peer": [], "env": [], "json": None, "csv": None}
RUNS: dict[str, Any] = {**OUTPUT, "runs": 3, "seconds": 1.0, "plot": None}
PYTHON: dict[str, Any] = {"python": sys.executable}
SETTING_RUNS: dict[str, Any] = {name: value for name, value in RUNS.items() if name not in ("peer", "plot")}
PHASE_RUNS: dict[str, Any] = {**{name: value for name, value in RUNS.items() if name != "peer"}, "seconds": 0.5}

LOOKUP_RUNS: dict[str, Any] = {name: value for name, value in RUNS.items() if name not in ("peer", "plot")}
ACE_RUNS: dict[str, Any] = {**{k: v for k, v in RUNS.items() if k not in ("peer", "plot")}, "seconds": 8.0}

BENCHMARKS = {
    "quick": Benchmark(timed, quick_jobs.__doc__ or "", {**RUNS, **PYTHON, "seconds": 0.2}, quick_jobs),
    "all": Benchmark(everything, everything.__doc__ or "", {**RUNS, **PYTHON}),
    **{
        name: Benchmark(timed, table.help, {**RUNS, "threads": table.threads}, functools.partial(timed_jobs, name))
        for name, table in TIMED.items()
    },
    "suites": Benchmark(timed, suites_jobs.__doc__ or "", RUNS, suites_jobs),
    "python": Benchmark(
        timed, "programs in Python under PYTHONMALLOC=malloc, beside pymalloc", {**RUNS, **PYTHON}, python_jobs
    ),
    "phases": Benchmark(phases, phases.__doc__ or "", {**PHASE_RUNS, "threads": PHASE_THREADS}),
    "scaling": Benchmark(scaling, scaling.__doc__ or "", {**RUNS, "threads": SCALING_THREADS}),
    "lookup": Benchmark(lookup, lookup.__doc__ or "", {**LOOKUP_RUNS, "runs": 5, "seconds": LOOKUP_SECONDS}),
    "adaptive": Benchmark(adaptive, adaptive.__doc__ or "", {**SETTING_RUNS, "seconds": 4.0}),
    "prewarm": Benchmark(prewarm, prewarm.__doc__ or "", SETTING_RUNS),
    "ace": Benchmark(ace, ace.__doc__ or "", ACE_RUNS),
    "instructions": Benchmark(instructions, instructions.__doc__ or "", OUTPUT),
    "peers": Benchmark(peers, peers.__doc__ or "", {"peer": []}),
    "sites": Benchmark(sites, sites.__doc__ or "", {**{k: v for k, v in OUTPUT.items() if k != "peer"}, "runs": 3}),
}


def first_line(path: str, pattern: str) -> str | None:
    """What the pattern's group is in a file; None where there is no such file."""
    found = re.search(pattern, Path(path).read_text() if Path(path).exists() else "", re.MULTILINE)
    return found[1] if found else None


def compiler() -> str | None:
    try:
        return run_program([*build.find_compiler(), "--version"], Allocator(SYSTEM), 60).splitlines()[0]
    except (build.BuildError, RunFailed, OSError, IndexError):
        return None  # an installed copy may do without


def machine(python: str) -> dict[str, str | int | None]:
    """What the figures were measured on."""
    import psutil

    if not python_runs(python, ""):
        raise stop(f"--python {python} does not run")
    return {
        "hakmem": first_line(str(build.SOURCE), r'^#define HAK_VERSION "(.+)"'),
        "cpu": first_line("/proc/cpuinfo", r"^model name\s*: (.*)") or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cpus": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "thp": first_line("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        "libc": " ".join(platform.libc_ver()),
        "compiler": compiler(),
        "python": run_program([python, "-c", PYTHON_VERSION], Allocator(SYSTEM), 60).strip(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def listed(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME,NAME")
    return names


def numbers(text: str) -> list[int]:
    try:
        return [int(name) for name in dict.fromkeys(listed(text))]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not N,N") from None


def parser() -> argparse.ArgumentParser:
    """An option that is not given is not in the result: its default is the benchmark's."""
    parser = argparse.ArgumentParser(
        PROGRAM,
        description=(__doc__ or "").replace("python bench.py", PROGRAM if INSTALLED else "python bench.py"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    helps = "; ".join(f"{name}: {benchmark.help}" for name, benchmark in BENCHMARKS.items())
    add("benchmark", nargs="?", choices=BENCHMARKS, default="quick", help=helps)
    add("-n", dest="runs", type=int, help="runs of everything (default 3, lookup 5)")
    add("--threads", type=numbers, metavar="N,N", help="in place of the benchmark's own")
    add("--seconds", type=float, help="length of a run (default 1; `quick` 0.2, `phases` 0.5, `lookup` 0.05, ...)")
    add("--only", type=listed, metavar="NAME,NAME", help="no other allocators than these")
    add("--peer", type=pair, action="append", metavar="NAME=PATH", help="one more allocator")
    add("--env", type=pair, action="append", metavar="NAME=VALUE", help="set this variable in every run")
    add("--python", metavar="PATH", help="the interpreter that runs the Python programs (default: this one)")
    add("--json", metavar="FILE", help="write the rows there; - is stdout, in place of the table")
    add("--csv", metavar="FILE", help="the same as CSV")
    add("--plot", metavar="FILE.png", help="draw time and RSS as ratios to the system (needs matplotlib)")
    return parser


def objections(options: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the values of options, found before anything is run."""
    given = vars(options)
    if given.get("runs", 1) < 1:
        yield "-n is at least 1"
    if not 0.001 <= given.get("seconds", 1) <= 3600:
        yield "--seconds is between 0.001 and 3600"
    if not all(1 <= count <= 4096 for count in given.get("threads", ())):
        yield "--threads are between 1 and 4096"
    team = TIMED[options.benchmark].teams_of if options.benchmark in TIMED else 1
    if any(count % team for count in given.get("threads", ())):
        yield f"{options.benchmark} runs teams of {team} threads: --threads must be multiples of {team}"
    for variable, _ in given.get("env", ()):
        chosen = {"phases": SWITCHES, "lookup": (REGISTRY,), "ace": ("HAKMEM_ACE",)}.get(options.benchmark, ())
        if variable.startswith(RESERVED) or variable in chosen:
            yield f"--env {variable}: the rows say what it is"
        if any(variable in variables for variables in SETTINGS.get(options.benchmark, {}).values()):
            yield f"--env {variable}: the rows say what it is"
    paths = {name: given[name] for name in ("json", "csv", "plot") if given.get(name)}
    for name, path in paths.items():
        target = Path(path).absolute()
        if path != "-" and not target.parent.is_dir():
            yield f"--{name} {path}: there is no such directory"
        elif path != "-" and (target.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK)):
            yield f"--{name} {path}: it cannot be written"
    if len(set(map(os.path.realpath, paths.values()))) < len(paths):
        yield "two of --json, --csv and --plot would write over one another"
    if given.get("plot"):
        if Path(options.plot).suffix not in (".png", ".svg", ".pdf"):
            yield "--plot writes .png, .svg or .pdf"
        if options.only and SYSTEM not in options.only:
            yield f"--plot shows ratios to {SYSTEM}: --only must name it too"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    commands = parser()
    given = vars(commands.parse_args(arguments))
    name = given["benchmark"]
    defaults = BENCHMARKS[name].defaults
    for option in given.keys() - {"benchmark", *defaults}:
        commands.error(f"{name} has no {'-n' if option == 'runs' else f'--{option}'}")
    options = argparse.Namespace(**{**defaults, **given})
    for objection in objections(options):
        commands.error(objection)
    return options


def need(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise stop(f"{' and '.join(missing)} must be installed: python -m pip install {' '.join(missing)}")


def write(rows: Sequence[Row], options: argparse.Namespace, about: dict[str, Any], command: str) -> None:
    """The rows, raw, where --json and --csv want them."""
    lines = [asdict(row) for row in rows]
    table = io.StringIO()
    writer = csv.DictWriter(table, [column.name for column in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    document = json.dumps({"machine": about, "command": command, "rows": lines}, indent=1) + "\n"
    for name, text in (("json", document), ("csv", table.getvalue())):
        path = getattr(options, name, None)
        if path == "-":
            sys.stdout.write(text)
        elif path:
            Path(path).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    for number in STOPPING - {signal.SIGINT}:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)  # so that the run under way is ended too
    need("psutil", "tabulate", *(["matplotlib"] if getattr(options, "plot", None) else []))
    try:
        about = machine(getattr(options, "python", sys.executable))
        rows, text, drawn = BENCHMARKS[options.benchmark].run(options)
        title = f"{about['cpu']}, {about['logical_cpus']} cpus, {about['kernel']}, {about['libc']}"
        if "-" not in (getattr(options, "json", None), getattr(options, "csv", None)):
            print(f"{title}\n\n{text}")
        write(rows, options, about, shlex.join([*PROGRAM.split(), *arguments]))
        if getattr(options, "plot", None):
            plot(drawn, options.plot, title)
    except (build.BuildError, OSError) as error:
        raise stop(error) from None
    except KeyboardInterrupt:
        progress("")
        print(f"{PROGRAM}: stopped", file=sys.stderr)
        return 130
    return 1 if any(row.failure for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
