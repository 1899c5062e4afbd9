#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["psutil", "tabulate"]
# ///
"""Time hakmem beside the system allocator and every other allocator found on this machine.

    python bench.py                     the larson table, about a minute
    python bench.py larson -n 5 --threads 1,4,16,32 --seconds 2
    python bench.py instructions        instructions a malloc+free pair takes, counted by valgrind
    python bench.py peers               which allocators were found, and how to install more
    python bench.py --peer mi3=/opt/mi3/libmimalloc.so.3 --json rows.json

    workload      threads  allocator      Mops/s    ns/op    / system      range    / best peer    RSS MB    faults
    ----------  ---------  -----------  --------  -------  ----------  ---------  -------------  --------  --------
    larson              4  system           36.5     27.4        1.00  1.00-1.00           2.64      68.5     19934
    larson              4  hakmem          134.4      7.4        0.27  0.25-0.32           0.72      40.7      9878
    larson              4  mimalloc         73.5     13.6        0.49  0.34-0.51           1.35     101.0     30831
    larson              4  jemalloc         55.0     18.2        0.63  0.51-0.66           1.75      67.2     23540
    larson              4  tcmalloc         96.4     10.4        0.38  0.36-0.42           1.00      35.1      7916

Every run is a fresh process with the allocator in LD_PRELOAD; the allocators take turns, round by round, so that
a slow minute of the machine hits them all. An op is one malloc and one free. Ratios are time over time, below 1 is
faster: the median of the rounds' own ratios, and its range. The best peer is the one with the lowest median time.
RSS (peak) and faults are the whole process's, as it reports them itself; hit rate (of the thread caches) and locks
(shared-lock acquisitions per million ops) are hakmem's own counters. A run that fails is a row that says so, and
exit code 1. HAKMEM_* variables of the caller are not passed on; --env sets them.

Not measured: latency of single calls; memory held after the load is over; fragmentation over hours; programs that
do more than allocate (the differences are smaller there); more cores than this machine has. With more threads than
cores the time is the scheduler's too. `instructions` counts instructions, neither cycles nor cache misses.
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
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import build

SYSTEM, HAKMEM = "system", "hakmem"

# ---- Allocators


@dataclass(frozen=True)
class Allocator:
    """What a run is started with: a library to preload (None: the system's malloc) and environment variables."""

    name: str
    library: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("HAKMEM_")}
        preload = {"LD_PRELOAD": str(self.library)} if self.library else {}
        return {**env, **preload, **self.variables}


# name: (how its library is called, how to install it)
PEERS = {
    "mimalloc": (["libmimalloc.so*"], "apt install libmimalloc2.0 | dnf install mimalloc"),
    "jemalloc": (["libjemalloc.so*"], "apt install libjemalloc2 | dnf install jemalloc"),
    "tcmalloc": (
        ["libtcmalloc_minimal.so*", "libtcmalloc.so*"],
        "apt install libtcmalloc-minimal4 | dnf install gperftools-libs",
    ),
    "rpmalloc": (["librpmalloc.so*", "librpmallocwrap.so*"], "build it, then --peer rpmalloc=PATH"),
    "snmalloc": (["libsnmallocshim.so*"], "build it, then --peer snmalloc=PATH"),
}


def library_folders() -> Iterator[Path]:
    """Where `make install` and distributions put shared libraries, in this order."""
    for root in (Path("/usr/local"), Path("/usr")):
        yield from sorted((root / "lib").glob(f"{platform.machine()}-linux-*"))
        yield root / "lib64"
        yield root / "lib"


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
    found = {name: find_library(sonames) for name, (sonames, _) in PEERS.items()}
    for name, path in given:
        if name in (SYSTEM, HAKMEM) or not Path(path).is_file():
            raise SystemExit(f"bench.py: --peer {name}={path}: a name of its own and a library that exists are needed")
        found[name] = Path(path).resolve()
    return {name: path for name, path in found.items() if path}


def choose_allocators(options: argparse.Namespace) -> list[Allocator]:
    """system, hakmem and the peers, or those of them that --only names; hakmem is built if need be."""
    libraries = {SYSTEM: None, HAKMEM: build.library_path(), **find_peers(options.peer)}
    names = options.only or list(libraries)
    for name in names:
        if name not in libraries:
            raise SystemExit(f"bench.py: {name} was not found; see `python bench.py peers`")
        if re.search(r"[\s:]", str(libraries[name])):
            raise SystemExit(f"bench.py: LD_PRELOAD cannot hold a space or ':': move {libraries[name]}")
    if HAKMEM in names:
        with contextlib.redirect_stdout(sys.stderr):  # stdout may be the JSON
            build.build()
    return [Allocator(name, libraries[name], dict(options.env)) for name in names]


# ---- One run


@dataclass(frozen=True)
class Case:
    """What is run under every allocator: a workload of _bench_workloads with its keys."""

    label: str
    command: tuple[str, ...]
    threads: int = 1
    timeout: float = 300
    budget: int | None = None  # instructions


@dataclass(frozen=True)
class Sample:
    """The result of one run, as _bench_workloads prints it. None is what does not apply."""

    workload: str
    threads: int
    ops: int
    seconds: float
    ns_per_op: float
    peak_rss_bytes: int | None
    faults: int
    allocs: int | None
    cache_misses: int | None
    shared_locks: int | None
    shared_locks_contended: int | None
    claims: int | None

    @property
    def hit_rate(self) -> float | None:
        return 1 - self.cache_misses / self.allocs if self.allocs and self.cache_misses is not None else None

    def per_mop(self, events: int | None) -> float | None:
        return events / self.ops * 1e6 if events is not None else None


class RunFailed(Exception):
    """A run without a result; the text is how it ended and the last line that it wrote on stderr."""


def run_program(command: Sequence[str], allocator: Allocator, timeout: float) -> str:
    """Run a command under an allocator and return its stdout."""
    try:
        done = subprocess.run(
            command,
            check=False,
            env=allocator.environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"no end within {timeout:.0f} s") from None
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing on stderr")
    if done.returncode < 0:
        raise RunFailed(f"{signal.Signals(-done.returncode).name}: {last}")
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


def run_case(case: Case, allocator: Allocator) -> Sample:
    output = run_program([workloads(), *case.command], allocator, case.timeout)
    try:
        sample = Sample(**json.loads(output))
    except (ValueError, TypeError):
        raise RunFailed(f"not a result: {output[:80]!r}") from None
    if allocator.name == HAKMEM and sample.allocs is None:
        raise RunFailed("hakmem is not in the process (no hak_stat)")
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
    peak_rss_bytes: float | None = None
    faults: float | None = None
    hit_rate: float | None = None  # 0 to 1
    locks_per_mop: float | None = None
    contended_per_mop: float | None = None
    claims_per_mop: float | None = None
    instructions: float | None = None
    runs: int = 0
    best_peer: str | None = None
    failure: str | None = None


def measure(cases: Sequence[Case], allocators: Sequence[Allocator], runs: int) -> list[Row]:
    """Every case under every allocator, in turns; who fails a case is not run in it again."""
    rows: list[Row] = []
    start, total = time.monotonic(), len(cases) * runs * len(allocators)
    for position, case in enumerate(cases):
        samples: dict[str, list[Sample]] = {allocator.name: [] for allocator in allocators}
        failures: dict[str, str] = {}
        for turn in range(runs * len(allocators)):
            allocator, done = allocators[turn % len(allocators)], position * runs * len(allocators) + turn
            left = f"{(time.monotonic() - start) / done * (total - done):.0f} s to go" if done else ""
            progress(f"[{done + 1}/{total}] {case.label}, {case.threads} threads, {allocator.name}  {left}")
            if allocator.name not in failures:
                try:
                    samples[allocator.name].append(run_case(case, allocator))
                except RunFailed as failure:
                    failures[allocator.name] = f"run {len(samples[allocator.name]) + 1}: {failure}"
        rows += summarise(case, samples, failures)
    progress("")
    return rows


def summarise(case: Case, samples: dict[str, list[Sample]], failures: dict[str, str]) -> list[Row]:
    """One row for each allocator, with its ratios to the others."""
    times = {name: median(s.ns_per_op for s in own) for name, own in samples.items() if name not in failures}
    best = min((name for name in times if name not in (SYSTEM, HAKMEM)), key=times.__getitem__, default=None)

    def ratios(name: str, base: str | None) -> list[float]:
        """Time over time, round by round."""
        return [a.ns_per_op / b.ns_per_op for a, b in zip(samples[name], samples[base])] if base in times else []

    rows = []
    for name, own in samples.items():
        row = Row(case.label, case.threads, name, runs=len(own), best_peer=best, failure=failures.get(name))
        rows.append(row)
        if row.failure:
            continue
        to_system = ratios(name, SYSTEM)
        row.ns_per_op, row.ops_per_s = times[name], 1e9 / times[name]
        row.ratio_system, row.ratio_best_peer = middle(to_system), middle(ratios(name, best))
        row.ratio_min, row.ratio_max = min(to_system, default=None), max(to_system, default=None)
        row.peak_rss_bytes = middle(s.peak_rss_bytes for s in own)
        row.faults = middle(s.faults for s in own)
        row.hit_rate = middle(s.hit_rate for s in own)
        row.locks_per_mop = middle(s.per_mop(s.shared_locks) for s in own)
        row.contended_per_mop = middle(s.per_mop(s.shared_locks_contended) for s in own)
        row.claims_per_mop = middle(s.per_mop(s.claims) for s in own)
    return rows


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


# ---- Tables


def cell(value: float | None, form: str, scale: float = 1) -> str:
    return "" if value is None else format(value * scale, form)


# heading: a row's text under it
COLUMNS: dict[str, Callable[[Row], str]] = {
    "workload": lambda r: r.workload,
    "threads": lambda r: str(r.threads),
    "allocator": lambda r: r.allocator,
    "Mops/s": lambda r: "failed" if r.failure else cell(r.ops_per_s, ".1f", 1e-6),
    "ns/op": lambda r: cell(r.ns_per_op, ".1f"),
    "/ system": lambda r: cell(r.ratio_system, ".2f"),
    "range": lambda r: "" if r.ratio_min is None else f"{r.ratio_min:.2f}-{r.ratio_max:.2f}",
    "/ best peer": lambda r: cell(r.ratio_best_peer, ".2f"),
    "RSS MB": lambda r: cell(r.peak_rss_bytes, ".1f", 1e-6),
    "faults": lambda r: cell(r.faults, ".0f"),
    "hit %": lambda r: cell(r.hit_rate, ".2f", 100),
    "locks/Mop": lambda r: cell(r.locks_per_mop, ".1f"),
    "failure": lambda r: r.failure or "",
}


def tabulated(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    to_the_left = ("workload", "allocator", "failure", "library", "install")
    align = ["left" if heading in to_the_left else "right" for heading in headings]
    return tabulate(lines, headings, disable_numparse=True, colalign=align)


def time_table(rows: Sequence[Row]) -> str:
    """A column that is empty in every row is left out."""
    columns = {heading: [text(row) for row in rows] for heading, text in COLUMNS.items()}
    shown = {heading: column for heading, column in columns.items() if any(column)}
    return tabulated(list(shown), list(zip(*shown.values())))


def verdict(rows: Sequence[Row]) -> str:
    """hakmem against the system and the peers, a line each; nothing where hakmem was not run."""
    lines: dict[str, list[str]] = {}

    def add(line: str, ratio: float | None, *what: str | None) -> None:
        if ratio is not None:
            lines.setdefault(line, []).append(f"{ratio:.2f} ({', '.join(filter(None, what))})")

    for row in (row for row in rows if row.allocator == HAKMEM):
        where = f"{row.threads} thread{'s' * (row.threads > 1)}"
        add("system, time", row.ratio_system, where)
        add("best peer, time", row.ratio_best_peer, where, row.best_peer)
        same = [r for r in rows if (r.workload, r.threads) == (row.workload, row.threads)]
        peaks = [(r.peak_rss_bytes, r.allocator) for r in same if r.peak_rss_bytes]
        leanest = min((peak for peak in peaks if peak[1] not in (SYSTEM, HAKMEM)), default=None)
        if leanest and row.peak_rss_bytes:
            add("leanest peer, peak RSS", row.peak_rss_bytes / leanest[0], where, leanest[1])
    return "\n".join(f"hakmem / {line}: {'  '.join(parts)}" for line, parts in lines.items())


# ---- Instructions

# budget: DESIGN.md's row "first version", for a malloc+free pair, loop and PLT included
LOOPS = (
    Case("64 B", ("pairs", "size=64"), budget=54),
    Case("1 KiB", ("pairs", "size=1024"), budget=54),
    Case("16 KiB", ("pairs", "size=16384"), budget=58),
    Case("256 KiB", ("pairs", "size=262144"), budget=78),
    Case("calloc 64 B", ("calloc", "size=64"), budget=88),
    Case("burst of 64", ("burst", "size=64"), budget=58),
)
FEW, MANY = 6_400, 70_400  # pairs; the difference of two runs leaves start-up and warm-up out


def count_instructions(case: Case, allocator: Allocator, pairs: int) -> int:
    """The instructions of a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={log}"]
        run_program([*tool, workloads(), *case.command, f"n={pairs}"], allocator, case.timeout)
        collected = re.search(r"Collected : (\d+)", log.read_text(errors="replace"))
    if not collected:
        raise RunFailed("callgrind gave no count")
    return int(collected[1])


def count_pair(case: Case, allocator: Allocator) -> Row:
    row = Row(case.label, case.threads, allocator.name, runs=1)
    progress(f"{case.label}, {allocator.name}")
    try:
        few, many = (count_instructions(case, allocator, pairs) for pairs in (FEW, MANY))
        row.instructions = (many - few) / (MANY - FEW)
    except RunFailed as failure:
        row.failure = str(failure)
    return row


def kept(row: Row, budget: int) -> str:
    if row.instructions is None:
        return "failed"
    over = round(row.instructions, 1) - budget
    return "ok" if over <= 0 else f"over by {over:.1f}"


def instruction_table(rows: Sequence[Row]) -> str:
    """Allocators by loops, then the budget and whether hakmem keeps it."""
    by_allocator: dict[str, list[Row]] = {}
    for row in rows:
        by_allocator.setdefault(row.allocator, []).append(row)
    lines = [[name, *(cell(row.instructions, ".1f") or "failed" for row in own)] for name, own in by_allocator.items()]
    budgets = [case.budget or 0 for case in LOOPS]
    lines.append(["budget (first version)", *map(str, budgets)])
    if HAKMEM in by_allocator:
        lines.append(["hakmem keeps it", *map(kept, by_allocator[HAKMEM], budgets)])
    failures = [f"failed: {row.allocator}, {row.workload}: {row.failure}" for row in rows if row.failure]
    return "\n".join([tabulated(["allocator", *(case.label for case in LOOPS)], lines), *failures])


# ---- The benchmarks: each returns its rows and the text that shows them

Result = tuple[list[Row], str]


def larson(options: argparse.Namespace) -> Result:
    """a server: 10,000 blocks of 8-1,024 bytes a thread, replaced at random; threads hand their blocks on"""
    cases = [
        Case("larson", ("larson", f"threads={n}", f"seconds={options.seconds}"), n, timeout=60 + 10 * options.seconds)
        for n in options.threads
    ]
    rows = measure(cases, choose_allocators(options), options.runs)
    return rows, f"{time_table(rows)}\n\n{verdict(rows)}".rstrip()


def instructions(options: argparse.Namespace) -> Result:
    """instructions that a malloc+free pair takes, by callgrind"""
    if not shutil.which("valgrind"):
        raise SystemExit("bench.py: instructions are counted by valgrind: apt install valgrind | dnf install valgrind")
    allocators = choose_allocators(options)
    workloads()  # built before the threads start
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a count does not depend on what else runs
        jobs = [pool.submit(count_pair, case, allocator) for allocator in allocators for case in LOOPS]
        rows = [job.result() for job in jobs]
    progress("")
    return rows, instruction_table(rows)


def peers(options: argparse.Namespace) -> Result:
    """the allocators found on this machine, and how to install more"""
    found = find_peers(options.peer)
    lines = [[name, str(path), ""] for name, path in found.items()]
    lines += [[name, "not found", install] for name, (_, install) in PEERS.items() if name not in found]
    return [], tabulated(["allocator", "library", "install"], lines)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "larson": larson,
    "instructions": instructions,
    "peers": peers,
}

# ---- Command line


def machine() -> dict[str, str | int | None]:
    """What the figures were measured on."""
    import psutil

    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cpus": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE"""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(text)
    return name, value


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    helps = "; ".join(f"{name}: {run.__doc__}" for name, run in BENCHMARKS.items())
    add("benchmark", nargs="?", choices=BENCHMARKS, default="larson", help=helps)
    add("-n", dest="runs", type=int, default=3, help="runs of everything (default 3)")
    add("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16], help="default 1,4,16")
    add("--seconds", type=float, default=1.0, help="length of a run (default 1)")
    add("--only", type=lambda text: text.split(","), metavar="NAME,NAME", help="no other allocators than these")
    add("--peer", type=pair, action="append", default=[], metavar="NAME=PATH", help="one more allocator")
    add("--env", type=pair, action="append", default=[], metavar="NAME=VALUE", help="set this variable in every run")
    add("--json", metavar="FILE", help="write the rows there; - is stdout, in place of the table")
    add("--csv", metavar="FILE", help="the same as CSV")
    options = parser.parse_args(arguments)
    if options.runs < 1 or min(options.threads) < 1 or not 0.001 <= options.seconds <= 3600:
        parser.error("RUNS and the numbers of threads are at least 1, the seconds between 0.001 and 3600")
    return options


def write(rows: Sequence[Row], options: argparse.Namespace, command: str) -> None:
    """The rows, raw, where --json and --csv want them."""
    lines = [asdict(row) for row in rows]
    table = io.StringIO()
    writer = csv.DictWriter(table, [column.name for column in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    document = json.dumps({"machine": machine(), "command": command, "rows": lines}, indent=1) + "\n"
    for name, text in ((options.json, document), (options.csv, table.getvalue())):
        if name == "-":
            sys.stdout.write(text)
        elif name:
            Path(name).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    missing = [name for name in ("psutil", "tabulate") if importlib.util.find_spec(name) is None]
    options = parse(arguments)
    if missing:
        raise SystemExit(f"bench.py needs {' and '.join(missing)}: python -m pip install {' '.join(missing)}")
    try:
        rows, text = BENCHMARKS[options.benchmark](options)
    except build.BuildError as error:
        raise SystemExit(f"bench.py: {error}") from None
    except KeyboardInterrupt:
        return 130
    if "-" not in (options.json, options.csv):
        about = machine()
        print(f"{about['cpu']}, {about['logical_cpus']} cpus, {about['kernel']}, {about['libc']}\n\n{text}")
    write(rows, options, shlex.join(["bench.py", *arguments]))
    return 1 if any(row.failure for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
