"""Every subcommand of bench.py runs, its figures agree, what fails is a row that says so; no test asserts a time."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from _helpers import cc

import bench
import build

KEYS = """workload threads allocator ns_per_op ops_per_s ratio_system ratio_best_peer ratio_min ratio_max peak_rss_bytes
    faults faults_per_kop hit_rate locks_per_mop instructions runs ns_per_op_runs library handovers""".split()

PROLOGUE = """
#include <stdlib.h>
static char heap[1 << 28];
static size_t used;
void *calloc(size_t n, size_t m)
{
    char *p = heap + (used += 16);
    used += (n * m + 15) / 16 * 16;
    return used <= sizeof heap ? p : NULL;
}
void free(void *p) { (void)p; }
"""

# what is wrong with it: (a workload that shows it, the rest of the allocator, what the row says)
BROKEN = {
    "hands out one block twice": (
        "mixed",
        "void *malloc(size_t n) { return n < 16 || n > 1024 ? calloc(1, n) : heap; }",
        "contents of a block",
    ),
    "loses what realloc should keep": (
        "realloc",
        "void *malloc(size_t n) { return calloc(1, n); } void *realloc(void *p, size_t n) { return calloc(1, n); }",
        "lost the contents",
    ),
    "crashes": ("mixed", "void *malloc(size_t n) { abort(); }", "SIGABRT"),
}


@pytest.fixture(scope="module")
def make_library(tmp_path_factory):
    """Compiles a shared library."""

    def make(name, text):
        folder = tmp_path_factory.mktemp("peers")
        source = folder / f"{name}.c"
        source.write_text(text)
        target = folder / f"lib{name}.so"
        flags = ["-shared", "-fPIC", "-fno-builtin", "-O1"]
        subprocess.run([*cc(), *flags, str(source), "-o", str(target)], check=True, timeout=60)
        return target

    return make


FORWARDING = """
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
void *malloc(size_t n) { return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return __libc_realloc(p, n); }
void free(void *p) { __libc_free(p); }
"""


@pytest.fixture(scope="module")
def twin(make_library):
    """A peer that exists everywhere: the system's malloc again, by way of a library."""
    return make_library("twin", FORWARDING)


@pytest.fixture
def bench_rows(capsys):
    """Runs bench.py in this process and returns its exit status and rows."""

    def rows(*arguments, document=False):
        status = bench.main([*map(str, arguments), "--json", "-"])
        result = json.loads(capsys.readouterr().out)
        return status, result if document else result["rows"]

    return rows


TINY = ("-n", "1", "--seconds", "0.005")


def run_workload(*arguments, **options):
    return subprocess.run([bench.workloads(), *arguments], text=True, check=False, timeout=60, **options)


def result_of(*arguments):
    return json.loads(run_workload(*arguments, stdout=subprocess.PIPE).stdout)


def keys_of(program_usage, heading):
    """The names under a heading of the workload program's usage text."""
    part = program_usage.split(f"{heading}:\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in part.splitlines() if line[2] != " "]


@pytest.fixture(scope="module")
def usage():
    return subprocess.run([bench.workloads()], capture_output=True, text=True, check=False, timeout=60).stderr


# ---- The workload program


def test_every_workload_is_reached_by_some_subcommand(usage):
    reached = {name for table in bench.TIMED.values() for name in table.workloads}
    reached |= {name for cases in bench.SETTINGS_CASES.values() for name, _ in cases}
    reached |= {keys[0] for keys, _ in bench.LOOPS.values()}
    reached |= {case.command[1] for case, _ in bench.lookup_jobs(bench.parse(["lookup"]), None)}
    reached |= {bench.STREWN}
    reached |= {name for name, _ in bench.SUITES}
    reached |= {name for name, _ in bench.ACE_LOADS}
    assert sorted(reached) == sorted(keys_of(usage, "workloads"))
    assert {name for name, *_ in bench.QUICK} <= reached


def test_every_key_refuses_what_it_cannot_be(usage):
    for key in keys_of(usage, "keys"):
        workload = next(
            w for w, own in re.findall(r"^  (\S+) .*\n +keys: ([^;\n]+)", usage, re.MULTILINE) if key in own.split()
        )
        for value in ("x", "", "-1", "1e99", "nan", "1 "):
            done = run_workload(workload, f"{key}={value}", capture_output=True)
            assert done.returncode == 1, (key, value)
            assert done.stderr.startswith(f"_bench_workloads: {key}={value}: a ")
            assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no workload is called nothing"),
        (["mixed", "nokey=1"], "no key is called nokey"),
        (["mixed", "min=20", "max=10"], "min=20 is above max=10"),
        (["mixed", "doublings=9"], "doubled"),
        (["mixed", "threads=0"], "threads=0: a whole number from 1 to 4096 is needed"),
        (["mixed", "seconds=4000"], "seconds=4000: a number from 0.001 to 3600 is needed"),
        (["prodcons", "threads=3"], "even number"),
        (["scenario-json", "json=0"], "set a share"),
        (["pairs", "threads=4"], "pairs has no key threads; its keys: n size"),
        (["realloc", "touch=1"], "realloc has no key touch"),
        (["lookup", "slabs=8"], "hak_option_get is not in the process: lookup needs hakmem"),
        ([], "usage:"),
    ],
)
def test_the_program_says_what_is_wrong(arguments, message):
    done = subprocess.run([bench.workloads(), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (1, 2)
    assert message in done.stderr


def test_a_result_that_cannot_be_written_is_an_error_with_a_word():
    with open("/dev/full", "w") as full:
        done = run_workload("pairs", "n=1", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (
        1,
        "_bench_workloads: the result cannot be written: No space left on device\n",
    )


def test_warming_up_is_not_counted():
    """The first fault of a block's page is before the clock starts."""
    assert result_of("mixed", "seconds=0.001", "warm=0", "slots=100000")["faults"] < 1000
    assert result_of("scenario-json", "seconds=0.001")["faults"] < 500
    assert result_of("churn", "seconds=0.001")["faults"] < 500


def test_hakmems_counters_are_of_the_measured_time_too(bench_rows):
    allocator = bench.Allocator("hakmem", bench.hakmem_library(), is_hakmem=True)
    few = bench.run_case(bench.workload("mixed", 1, 0.001, "slots=1000000", "warm=1"), allocator)
    assert few.allocs < few.ops + 100
    rows = bench_rows("python", *TINY, "--only", "hakmem")[1]
    assert all(row["faults"] < 20_000 for row in rows)


def test_a_growth_is_never_cut_short():
    for _ in range(3):
        done = result_of("realloc-large", "seconds=0.001", "max=1048576", "step=65536")
        assert done["ops"] >= 8  # 16 on average
    assert 800 < result_of("realloc-large", "seconds=0.001")["ops"] < 3000


def test_only_the_ends_of_a_block_are_touched_where_that_is_asked():
    mixed = ("mixed", "seconds=0.001", "min=1048576", "max=1048576", "slots=16", "warm=0")
    assert result_of(*mixed)["peak_rss_bytes"] > 15 << 20
    assert result_of(*mixed, "touch=1000000000")["peak_rss_bytes"] < 8 << 20


def test_larsons_threads_hand_on_and_tell_how_often():
    done = result_of("larson", "seconds=0.3", "slots=100", "rounds=2", "threads=2")
    assert 0 < done["handovers"] <= done["ops"] / 200
    assert result_of("larson", "seconds=0.001", "rounds=1000000")["handovers"] == 0
    assert result_of("mixed", "seconds=0.001")["handovers"] is None


def test_small_machines_are_freed_together_so_that_memory_goes_and_comes():
    assert result_of("scenario-vm", "seconds=0.2")["faults"] > 1000  # the system's malloc gives it back


def test_the_mark_of_a_block_says_nothing_of_its_size(tmp_path):
    (tmp_path / "test.c").write_text(
        f'#define main workloads_main\n#include "{build.WORKLOADS}"\n#undef main\n'
        """
        int main(void)
        {
            static unsigned char seen[1025];
            uint64_t random = random_seed(1);
            unsigned kinds = 0;
            for (int i = 0; i < 100000; i++) {
                struct block block = block_random(random_next(&random));
                kinds += block.size == 500 && !(seen[block.mark / 8] >> block.mark % 8 & 1);
                if (block.size == 500)
                    seen[block.mark / 8] |= (unsigned char)(1 << block.mark % 8);
                block_free(&block);
            }
            printf("%u", kinds);
        }
        """
    )
    target = tmp_path / "test"
    subprocess.run([*cc(), "-w", "-pthread", tmp_path / "test.c", "-o", target, "-ldl"], check=True, timeout=60)
    assert int(subprocess.run([target], capture_output=True, check=True, timeout=60).stdout) > 40


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_compilers_have_nothing_to_say(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    warnings = "-Wall -Wextra -Wshadow -Wconversion -Werror -std=gnu11".split()
    command = [compiler, *build.WORKLOAD_FLAGS, *warnings, "-o", tmp_path / "out", build.WORKLOADS, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_latency_is_off_by_less_than_a_percent_and_percentiles_are_those_of_the_samples(tmp_path):
    (tmp_path / "test.c").write_text(
        f'#define main workloads_main\n#include "{build.WORKLOADS}"\n#undef main\n'
        """
        #include <assert.h>
        int main(void)
        {
            static uint64_t buckets[BUCKETS];
            for (uint64_t ns = 0, before = 0; ns < UINT64_C(1) << 45; ns += 1 + ns / 1000) {
                uint64_t middle = bucket_middle(bucket_of(ns));
                assert(bucket_of(ns) < BUCKETS && middle >= before);
                assert((middle > ns ? middle - ns : ns - middle) <= ns / 128 + 1);
                before = middle;
            }
            assert(bucket_of(UINT64_MAX) == BUCKETS - 1);
            for (uint64_t ns = 1; ns <= 1000; ns++)
                buckets[bucket_of(ns * 1000)]++;
            printf("%llu %llu", (unsigned long long)percentile(buckets, 1000, 50),
                   (unsigned long long)percentile(buckets, 1000, 99));
        }
        """
    )
    target = tmp_path / "test"
    subprocess.run([*cc(), "-w", "-pthread", tmp_path / "test.c", "-o", target, "-ldl"], check=True, timeout=60)
    half, most = map(int, subprocess.run([target], capture_output=True, check=True, timeout=60).stdout.split())
    assert half == pytest.approx(500_000, rel=1 / 50)
    assert most == pytest.approx(990_000, rel=1 / 50)


# ---- The subcommands


@pytest.mark.parametrize("name", bench.TIMED)
def test_a_timed_subcommand_runs_its_workloads(name, bench_rows):
    threads = ("--threads", "2") if name != "scenarios" else ()
    status, rows = bench_rows(name, *TINY, *threads, "--only", "system,hakmem")
    assert status == 0
    assert [(row["workload"], row["allocator"]) for row in rows] == [
        (workload, allocator)
        for workload in bench.TIMED[name].workloads
        for allocator in ("system", "hakmem", *["hakmem without BigCache"] * (workload == bench.BIG_SCENARIO))
    ]
    for row in rows:
        assert set(KEYS) <= row.keys()
        asked = row["workload"] in ("large", "scenario-vm") and row["allocator"] == "hakmem"
        assert (row["big_hit_rate"] is not None) >= asked  # of the others some have a block above 1 MiB by chance
        if row["workload"] == bench.BIG_SCENARIO:
            assert row["big_hit_rate"] is None or row["allocator"] == "hakmem"
        assert row["threads"] == (2 if threads else 1)
        assert row["ops_per_s"] * row["ns_per_op"] == pytest.approx(1e9)
        assert row["peak_rss_bytes"] > 1 << 20
        assert row["faults"] >= 0
        assert (row["faults_per_kop"] > 0) is (row["faults"] > 0)
        assert row["ns_per_op_runs"] == [row["ns_per_op"]]
        assert ("libc" if row["allocator"] == "system" else "hakmem") in row["library"]
        assert (row["handovers"] is not None) is (name == "larson")
        assert (row["instructions"], row["runs"], row["failure"]) == (None, 1, None)
        ours = row["allocator"] != "system"
        assert (row["hit_rate"] is not None) is ours
        assert (row["locks_per_mop"] is not None) is ours
        percentiles = [row["p50_ns"], row["p95_ns"], row["p99_ns"]]
        if name == "scenarios":
            assert 0 < percentiles[0] <= percentiles[1] <= percentiles[2]
        else:
            assert percentiles == [None] * 3


def test_suites_run_each_workload_at_its_threads(bench_rows):
    status, rows = bench_rows("suites", *TINY, "--only", "system,hakmem")
    assert (status, [row["failure"] for row in rows]) == (0, [None] * len(rows))
    cases = [(row["workload"], row["threads"], row["allocator"]) for row in rows]
    assert cases == [(*case, name) for case in bench.SUITES for name in ("system", "hakmem")]
    assert all(row["hit_rate"] is not None for row in rows if row["allocator"] == "hakmem")


def test_quick_is_the_default_and_shows_everything_in_one_table(capsys, twin):
    assert bench.parse([]).benchmark == "quick"
    assert bench.main([*TINY, "--only", "system,hakmem,twin,pymalloc", "--peer", f"twin={twin}"]) == 0
    table = capsys.readouterr().out
    for workload, *_ in bench.QUICK:
        assert re.search(rf"^{workload} .* hakmem ", table, re.MULTILINE)
    assert re.search(r"^python-json .* pymalloc ", table, re.MULTILINE)
    assert "p99" in table
    means = table.split("Geometric means")[1].splitlines()
    lines = {line.split()[0]: line.split()[1:] for line in means if line.strip()}
    assert lines["system"][:3] == [str(len(bench.QUICK) + 2), "1.00", "1.00"]
    assert 0.01 < float(lines["twin"][3]) < 100
    assert lines["pymalloc"][0] == "2"


def test_phases_switch_the_caches_on_one_by_one(bench_rows, capsys):
    status, rows = bench_rows("phases", *TINY, "--threads", "1,2", "--seconds", "0.1")  # of l25 7 in 100 hit
    assert status == 0
    found = {(row["workload"], row["threads"], row["allocator"]): row for row in rows}
    assert len(found) == len(bench.TIERS) * (2 * len(bench.PHASES) - 1)
    assert not [case for case in found if case[1:] == (2, "nolock")]
    first_with_caches = {"tiny": "+P1", "l2": "+P2", "l25": "+P3", "whale": None}
    for tier, first in first_with_caches.items():
        served = False
        for phase in bench.PHASES:
            served = served or phase == first
            rate = found[tier, 1, phase]["hit_rate"]
            assert rate is None if phase == "system" else (rate > 0.05) is served, (tier, phase, rate)
            assert found[tier, 1, phase]["ratio_best_peer"] is None
    text = bench.phase_tables([bench.Row(**row) for row in rows])
    cost = re.search(r"P0's lock .*: tiny ([\d.]+)", text)
    quotient = found["tiny", 1, "P0"]["ns_per_op"] / found["tiny", 1, "nolock"]["ns_per_op"]
    assert float(cost[1]) == pytest.approx(quotient, abs=0.006)
    assert re.search(r"^tiny +2 .* - ", text, re.MULTILINE)


def phase_row(threads, allocator, *runs):
    return bench.Row("tiny", threads, allocator, sum(runs) / len(runs), ns_per_op_runs=list(runs))


def test_the_locks_cost_is_told_at_one_thread_and_at_four_round_by_round():
    rows = [phase_row(1, "nolock", 10, 30, 20), phase_row(1, "P0", 20, 30, 60), phase_row(4, "P0", 40, 90, 600)]
    assert bench.lock_cost(rows).splitlines() == [
        "P0's lock at one thread, time over that without the lock: tiny 2.00",
        "P0 at four threads, time over that at one: tiny 3.00",
    ]
    assert bench.lock_cost(rows[1:2]) == ""


def test_every_phase_sets_every_switch():
    options = bench.parse(["phases"])
    for _, allocators in bench.phase_jobs(options, [1], None):
        for allocator in allocators[1:]:
            assert set(bench.SWITCHES) <= allocator.variables.keys()


@pytest.mark.parametrize("name", ["adaptive", "prewarm"])
def test_the_settings_of_one_library_are_compared(name, bench_rows, capsys):
    status, rows = bench_rows(name, *TINY)
    assert status == 0
    found = {(row["workload"], row["threads"], row["allocator"]): row for row in rows}
    assert list(found) == [(*case, setting) for case in bench.SETTINGS_CASES[name] for setting in bench.SETTINGS[name]]
    for (workload, _, _), row in found.items():
        assert row["failure"] is None
        assert row["hit_rate"] is not None
        assert (row["cached_bytes"] is not None) == (name == "adaptive"), workload
        assert (row["p99_ns"] is not None) == (name == "prewarm"), workload
    if name == "adaptive":
        assert found["hot-class", 1, "adaptive"]["hit_rate"] > found["hot-class", 1, "fixed 64"]["hit_rate"]
        assert found["idle-threads", 64, "adaptive"]["hit_rate"] > found["idle-threads", 64, "limit 16M"]["hit_rate"]
    else:
        cold, warm = (found["first-of-class", 100, f"prewarm={level}"]["hit_rate"] for level in (0, 1))
        assert warm > 0.9 > cold


def test_a_setting_is_what_the_row_says(capsys):
    with pytest.raises(SystemExit):
        bench.parse(["adaptive", "--env", "HAKMEM_CACHE_FIRST=5"])
    assert "--env HAKMEM_CACHE_FIRST: the rows say" in capsys.readouterr().err
    bench.parse(["prewarm", "--env", "HAKMEM_CACHE_FIRST=5"])


def test_all_is_the_sum_of_the_others(bench_rows, monkeypatch):
    monkeypatch.setattr(bench, "TIMED", {"mid": bench.TIMED["mid"]})
    monkeypatch.setattr(bench, "SUITES", [("scratch", 2)])
    monkeypatch.setattr(bench, "PYTHON_PROGRAMS", {"python-json": bench.PYTHON_PROGRAMS["python-json"]})
    monkeypatch.setattr(bench, "PHASE_THREADS", [1])
    monkeypatch.setattr(bench, "TIERS", {"tiny": bench.TIERS["tiny"]})
    monkeypatch.setattr(bench, "LOOPS", {"64 B": bench.LOOPS["64 B"]})
    monkeypatch.setattr(bench, "SLABS", [8])
    status, rows = bench_rows("all", *TINY, "--only", "system")
    assert status == 0
    counted = ["64 B"] if shutil.which("valgrind") else []
    assert list(dict.fromkeys(row["workload"] for row in rows)) == [
        "mid",
        "scratch",
        "python-json",
        *counted,
    ]  # no phases: hakmem's
    status, rows = bench_rows("all", *TINY, "--only", "hakmem")
    assert status == 0
    owners = ["8 slabs, random", "8 slabs, repeated"]
    assert list(dict.fromkeys(row["workload"] for row in rows)) == [
        *("mid", "scratch", "python-json", "tiny"),
        *owners,
        *counted,
    ]


def test_lookup_times_the_three_ways_on_the_same_slabs(bench_rows, monkeypatch):
    monkeypatch.setattr(bench, "SLABS", [8, 256])
    status, rows = bench_rows("lookup", "-n", "2", "--seconds", "0.005")
    assert (status, [row["failure"] for row in rows]) == (0, [None] * 12)
    assert [(row["workload"], row["allocator"]) for row in rows] == [
        (f"{slabs} slabs, {access}", way)
        for access in ("random", "repeated")
        for slabs in (8, 256)
        for way in ("arithmetic", "registry", "scan")
    ]
    for row in rows:
        assert row["ns_per_op"] > 0
        assert row["runs"] == len(row["ns_per_op_runs"]) == 2
        assert "hakmem" in row["library"]
    time = {(row["workload"], row["allocator"]): row["ns_per_op"] for row in rows}
    for access in ("random", "repeated"):  # 32 times as many steps: no clock is so wrong
        assert time[f"256 slabs, {access}", "scan"] > 3 * time[f"8 slabs, {access}", "scan"]


def test_lookup_of_one_way_alone_makes_no_claim(capsys, monkeypatch):
    monkeypatch.setattr(bench, "SLABS", [8, 16, 32])
    assert bench.main(["lookup", "-n", "1", "--seconds", "0.005", "--only", "scan"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^ +32 +\d+\.\d\d$", table, re.MULTILINE)
    assert "claim" not in table
    assert "slower" not in table


def lookup_rows(times):
    """Rows of one round: nanoseconds by access, slabs and way."""
    return [
        bench.Row(bench.lookup_case(slabs, access), 1, way, ns_per_op=ns, runs=1, ns_per_op_runs=[ns])
        for (access, slabs), own in times.items()
        for way, ns in own.items()
    ]


def hash_and_scan(*ratios):
    """Random and repeated access at 8, 16, 32 and 64 slabs, where scanning is so many times faster."""
    return lookup_rows(
        {
            (access, slabs): {"arithmetic": 1, "registry": 4, "scan": 4 / ratio}
            for access in bench.ACCESS
            for slabs, ratio in zip((8, 16, 32, 64), ratios)
        }
    )


@pytest.mark.parametrize(
    ("ratios", "claim", "crossing"),
    [
        ((13, 5, 2.9, 2), "holds here", "random: the scan is never slower than the registry, up to 64 slabs"),
        ((4, 1, 0.5, 0.2), "holds in part here", "repeated: the scan is slower than the registry from 32 slabs on"),
        ((2.8, 0.9, 1.1, 0.2), "does not hold here", "random: the scan is slower than the registry from 64 slabs on"),
        ((0.9, 0.5, 0.3, 0.1), "does not hold here", "from 8 slabs, the fewest measured, on"),
    ],
)
def test_the_crossover_and_what_is_left_of_the_claim(ratios, claim, crossing):
    text = bench.lookup_tables(hash_and_scan(*ratios))
    assert claim in text
    assert crossing in text
    assert f"repeated {', '.join(format(ratio, '.2g') for ratio in ratios[:3])}." in text
    assert len([line for line in text.splitlines() if line.startswith("The original's claim")]) == 1


def test_a_way_that_failed_is_a_row_that_says_so():
    rows = hash_and_scan(2, 1, 1, 1)
    rows[1].failure = "run 1: SIGSEGV"
    text = bench.lookup_tables(rows)
    assert "8 slabs, random: registry: run 1: SIGSEGV" in text
    assert "claim" not in text


def test_scaling_compares_with_four_threads_and_counts_locks(bench_rows):
    status, rows = bench_rows("scaling", *TINY, "--threads", "1,4,5", "--only", "system,hakmem")
    assert status == 0
    cases = {(row["workload"], row["threads"]) for row in rows}
    assert cases == {(name, n) for name in bench.SCALING for n in (1, 4, 5) if name != "prodcons" or n == 4}
    text = bench.scaling_tables([bench.Row(**row) for row in rows])
    against = text.split("those with 4 threads")[1].split("hakmem's locks")[0]
    for workload in bench.SCALING:
        assert re.search(rf"^{workload} +4 +1\.00 +1\.00$", against, re.MULTILINE)
    four, five = ([row for row in rows if row["workload"] == "mixed" and row["threads"] == n] for n in (4, 5))
    quotient = four[0]["ns_per_op"] / five[0]["ns_per_op"]
    assert re.search(rf"^mixed +5 +{quotient:.2f} ", against, re.MULTILINE)
    assert "shared locks" in text


def test_instructions_are_counted_where_valgrind_is(bench_rows, monkeypatch):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    loops = {label: loop for label, loop in bench.LOOPS.items() if loop[0][0] == "pairs" or label == "burst of 64"}
    monkeypatch.setattr(bench, "LOOPS", loops)
    status, rows = bench_rows("instructions", "--only", "hakmem")
    assert status == 0
    assert [row["workload"] for row in rows] == list(loops)
    assert all(10 < row["instructions"] < 1000 for row in rows)
    if platform.machine() == "x86_64":  # a slow path on the way would take hundreds; compilers differ by a few
        assert all(row["instructions"] < 1.25 * loops[row["workload"]][1] for row in rows)
    assert all(row["ns_per_op"] is None for row in rows)


def test_instructions_without_valgrind_say_how_to_get_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="apt install valgrind"):
        bench.main(["instructions"])


def test_peers_lists_those_found_and_how_to_get_the_others(capsys, twin):
    assert bench.main(["peers", "--peer", f"twin={twin}"]) == 0
    lines = capsys.readouterr().out
    assert str(twin) in lines
    for name in bench.PEERS:
        assert re.search(rf"^{name} +(/|not found +\S)", lines, re.MULTILINE)


# ---- Python programs


@pytest.fixture
def interpreter(tmp_path):
    """A Python that, as it is told, knows PYTHONMALLOC=mimalloc or not."""

    def make(knows_mimalloc):
        path = tmp_path / f"python-{knows_mimalloc}"
        answer = "PYTHONMALLOC=malloc" if knows_mimalloc else "exit 1"
        path.write_text(f'#!/bin/sh\n[ "$PYTHONMALLOC" != mimalloc ] || {answer}\nexec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return path

    return make


@pytest.mark.parametrize("knows_mimalloc", [True, False])
def test_python_programs_run_under_malloc_and_beside_pymalloc(bench_rows, interpreter, knows_mimalloc):
    status, rows = bench_rows("python", *TINY, "--python", interpreter(knows_mimalloc))
    assert status == 0
    assert {row["workload"] for row in rows} <= set(bench.PYTHON_PROGRAMS)
    for program in {row["workload"] for row in rows}:
        own = {row["allocator"]: row for row in rows if row["workload"] == program}
        assert {"system", "hakmem", "pymalloc"} <= own.keys()
        assert ("pymimalloc" in own) is knows_mimalloc
        assert own["pymalloc"]["is_peer"]
        assert own["hakmem"]["hit_rate"] > 0.5
        assert own["hakmem"]["peak_rss_bytes"] > 5 << 20
        assert own["pymalloc"]["hit_rate"] is None
        assert own["pymalloc"]["failure"] is None


def test_pythonmalloc_is_what_the_row_says(interpreter):
    options = bench.parse(["python", "--python", str(interpreter(knows_mimalloc=True))])
    allocators = bench.python_allocators(options, [bench.Allocator("system"), bench.Allocator("hakmem")])
    show = "import os; print(os.environ['PYTHONMALLOC'])"
    said = {a.name: bench.run_program([sys.executable, "-c", show], a, 60).strip() for a in allocators[:3]}
    assert said == {"system": "malloc", "hakmem": "malloc", "pymalloc": "pymalloc"}
    assert allocators[3].variables["PYTHONMALLOC"] == "mimalloc"


def test_without_numpy_its_program_is_left_out_with_a_word(monkeypatch, capsys):
    real = bench.python_runs
    monkeypatch.setattr(
        bench, "python_runs", lambda python, source, **v: "numpy" not in source and real(python, source, **v)
    )
    jobs = list(bench.python_jobs(bench.parse(["python"]), [bench.Allocator("system")]))
    assert [case.label for case, _ in jobs] == [name for name in bench.PYTHON_PROGRAMS if name != "python-numpy"]
    assert "python-numpy is left out" in capsys.readouterr().err


def test_an_interpreter_that_cannot_do_what_is_asked_is_refused(interpreter):
    with pytest.raises(SystemExit, match="knows no PYTHONMALLOC=mimalloc"):
        bench.main(["python", "--python", str(interpreter(knows_mimalloc=False)), "--only", "system,pymimalloc"])
    with pytest.raises(SystemExit, match="does not run"):
        bench.main(["python", "--python", "/no/such/python"])


# ---- Ratios


def sample(ns, rss=1000, ops=10, allocs=None, locks=None):
    return bench.Sample(
        "w",
        "libc",
        1,
        ops,
        1.0,
        ns,
        None,
        None,
        None,
        None,
        rss,
        5,
        allocs,
        allocs and allocs // 2,
        locks,
        locks,
        locks,
    )


def test_ratios_are_medians_of_the_rounds_and_the_best_peer_is_no_hakmem():
    allocators = [
        bench.Allocator("system"),
        bench.Allocator("hakmem", build.HERE / "ours", is_hakmem=True),
        bench.Allocator("nolock", build.HERE / "ours", is_hakmem=True),
        *(bench.Allocator(name, build.HERE / name) for name in ("slow", "fast")),
    ]
    samples = {
        "system": [sample(10.0), sample(20.0), sample(40.0)],
        "hakmem": [sample(5.0, 500, 10, 100, 3), sample(20.0, 500, 10, 100, 3), sample(10.0, 500, 10, 100, 3)],
        "nolock": [sample(1.0)] * 3,
        "slow": [sample(30.0, 250)] * 3,
        "fast": [sample(8.0, 2000)] * 3,
    }
    rows = {row.allocator: row for row in bench.summarise(bench.Case("w", ()), allocators, samples, {})}
    ours = rows["hakmem"]
    assert (ours.ns_per_op, ours.ops_per_s) == (10.0, 1e8)
    assert (ours.ratio_min, ours.ratio_system, ours.ratio_max) == (0.25, 0.5, 1.0)
    assert (ours.best_peer, ours.ratio_best_peer) == ("fast", 1.25)
    assert (ours.ratio_best_peer_min, ours.ratio_best_peer_max) == (0.625, 2.5)
    assert ours.ns_per_op_runs == [5.0, 20.0, 10.0]
    assert (ours.faults, ours.faults_per_kop) == (5, 500.0)
    assert (ours.rss_ratio_system, ours.rss_ratio_leanest_peer) == (0.5, 2.0)
    assert (ours.hit_rate, ours.locks_per_mop) == (0.5, 30_000.0)  # a million mallocs, since an op makes ten
    assert [name for name, row in rows.items() if row.is_peer] == ["slow", "fast"]
    assert rows["system"].locks_per_mop is None


def test_ratios_of_a_run_agree_with_its_times(bench_rows, twin):
    _, rows = bench_rows("mixed", "--threads", "1", "-n", "1", "--seconds", "0.01", "--only", "system,hakmem,twin",
                         "--peer", f"twin={twin}")  # fmt: skip
    times = {row["allocator"]: row["ns_per_op"] for row in rows}
    for row in rows:
        assert row["ratio_system"] == row["ratio_min"] == row["ratio_max"] == times[row["allocator"]] / times["system"]
        assert row["ratio_best_peer"] == times[row["allocator"]] / times["twin"]
        assert row["best_peer"] == "twin"


def test_means_are_geometric_and_losses_are_listed():
    def row(workload, allocator, ratio, peer=False):
        return bench.Row(
            workload, 1, allocator, 1.0, 1.0, ratio, ratio, best_peer="p", is_peer=peer, rss_ratio_system=ratio
        )

    rows = [row("a", "system", 1.0), row("a", "hakmem", 0.5), row("b", "system", 1.0), row("b", "hakmem", 8.0)]
    text = bench.means_table(rows) + bench.behind(rows)
    assert re.search(r"^hakmem +2 +2\.00 +2\.00 +2\.00", text, re.MULTILINE)
    assert "best peer in" not in text  # as no range is known


def test_what_may_be_chance_is_no_loss():
    def row(workload, ratio, low):
        return bench.Row(workload, 1, "hakmem", 1.0, ratio_best_peer=ratio, ratio_best_peer_min=low, best_peer="p")

    rows = [
        row("near", 1.1, 1.05),
        row("straddles", 1.5, 0.9),
        row("slow", 1.2, 1.1),
        row("slower", 2, 1.1),
        row("fast", 0.9, 0.8),
    ]
    slow, chance = bench.behind(rows).split("\n\n")[1:]
    assert slow.endswith("best peer in: slower (2.00, p); slow (1.20, p)")
    assert chance.endswith("chance, in: straddles (1.50, p); near (1.10, p)")


def test_chains_that_never_handed_on_are_named():
    rows = [
        bench.Row("larson", 16, "hakmem", handovers=3),
        bench.Row("larson", 1, "system", handovers=9),
        bench.Row("mid", 1, "x"),
    ]
    assert bench.not_handed_on(rows).endswith("in: larson, 16 threads, hakmem (3)")


def test_three_digits_and_a_unit():
    shown = {0.5: "0.50 ns", 1: "1.00 ns", 9.996: "10.0 ns", 27.43: "27.4 ns", 999.4: "999 ns", 999.6: "1.00 us",
             312_456: "312 us", 4.2e9: "4.20 s", 3e12: "3000 s"}  # fmt: skip
    assert {value: bench.scaled(value, bench.TIME) for value in shown} == shown
    assert bench.scaled(812, bench.RATE) == "812"
    assert bench.scaled(None, bench.RATE) == ""


# ---- What fails is a row


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_allocator_is_a_row_that_says_so(fault, make_library, bench_rows):
    workload, text, message = BROKEN[fault]
    peer = make_library("broken", PROLOGUE + text)
    status, rows = bench_rows(workload, "--threads", "1", "-n", "2", "--seconds", "0.01", "--only", "system,bad",
                              "--peer", f"bad={peer}")  # fmt: skip
    assert status == 1
    system, bad = rows[:2]
    assert message in bad["failure"]
    assert bad["ns_per_op"] is None
    assert bad["runs"] == 0
    assert bad["best_peer"] is None
    assert system["failure"] is None
    assert system["runs"] == 2


TWICE = BROKEN["hands out one block twice"][1]
# keys: what of a mistake each workload of `suites` that has several blocks at a time must notice
NOTICED = {
    "handoff threads=2": TWICE,  # one producer: this allocator has no lock
    "stress threads=1": TWICE,
    "passes threads=1": TWICE,
    "pareto": TWICE,
    "simple": TWICE,
    "skewed": TWICE,
    "big slots=2 max=6000000 warm=0": "void *malloc(size_t n) { return n < 1 << 20 ? calloc(1, n) : heap; }",
    "numbers": "void *malloc(size_t n) { return n == 28 ? heap : calloc(1, n); }",
    "leak threads=1": "void *malloc(size_t n) { return calloc(1, n); } "
    "__attribute__((constructor)) static void soil(void) { for (size_t i = 1 << 20; i < sizeof heap; i++) heap[i] = 1; "
    "used = 1 << 20; }",
}


@pytest.mark.parametrize("keys", NOTICED)
def test_each_suites_workload_notices_a_broken_allocator(keys, make_library):
    broken = bench.Allocator("broken", make_library("noticed", PROLOGUE + NOTICED[keys]))
    command = (bench.workloads(), *keys.split(), "seconds=0.05", "seed={seed}")
    bench.run_case(bench.Case(keys, command), bench.Allocator("system"))
    with pytest.raises(bench.RunFailed, match=r"^exit status 1: .*(contents of a block|not zero)"):
        bench.run_case(bench.Case(keys, command), broken)


def test_what_cannot_be_preloaded_fails_and_is_shown(capsys, tmp_path):
    (tmp_path / "text").write_text("not a library")
    options = ["mixed", *TINY, "--threads", "1", "--only", "system,text", "--peer", f"text={tmp_path / 'text'}"]
    assert bench.main(options) == 1
    assert re.search(r"^mixed +1 +text +failed .*cannot be preloaded", capsys.readouterr().out, re.MULTILINE)


def test_who_fails_is_not_run_again_and_the_others_are(monkeypatch):
    calls = []

    def run_case(case, allocator, seed):
        calls.append(allocator.name)
        if allocator.name == "bad":
            raise bench.RunFailed("broken")
        return sample(1.0)

    monkeypatch.setattr(bench, "run_case", run_case)
    rows = bench.measure([(bench.Case("w", ()), [bench.Allocator("bad"), bench.Allocator("system")])], 3)
    assert calls == ["bad", "system", "system", "system"]
    assert [row.failure for row in rows] == ["run 1: broken", None]


def test_who_hangs_is_in_no_later_case(monkeypatch):
    def run_case(case, allocator, seed):
        if allocator.name == "bad":
            raise bench.Hung("no end within 12 s")
        return sample(1.0)

    monkeypatch.setattr(bench, "run_case", run_case)
    jobs = [(bench.Case(label, (), 2), [bench.Allocator("bad"), bench.Allocator("system")]) for label in ("v", "w")]
    failures = [row.failure for row in bench.measure(jobs, 2)]
    assert failures == ["run 1: no end within 12 s", None, "not run: hung in v, 2 threads", None]


def test_every_round_begins_with_another_allocator_and_has_a_seed_of_its_own(monkeypatch):
    runs = []

    def run_case(case, allocator, seed):
        runs.append((allocator.name, seed))
        return sample(1.0)

    monkeypatch.setattr(bench, "run_case", run_case)
    bench.measure([(bench.Case("w", ()), [bench.Allocator(name) for name in "abc"])], 3)
    assert ["".join(name for name, seed in runs if seed == n) for n in (1, 2, 3)] == ["abc", "bca", "cab"]
    monkeypatch.undo()
    for case in (bench.workload("mid", 1, 1), next(iter(bench.python_jobs(bench.parse(["python"]), [])))[0]):
        assert any(word in ("seed={seed}", "PYTHONHASHSEED={seed}") for word in case.command)
    with pytest.raises(bench.RunFailed, match="not a result: 'seed=7'"):
        bench.run_case(bench.Case("w", ("printf", "%s", "seed={seed}")), bench.Allocator("system"), 7)


def test_a_signal_without_a_name_is_a_failure_like_others():
    with pytest.raises(bench.RunFailed, match="signal 37"):
        bench.run_program(["sh", "-c", "kill -37 $$"], bench.Allocator("system"), 60)
    with pytest.raises(bench.RunFailed, match="SIGKILL"):
        bench.run_program(["sh", "-c", "kill -9 $$"], bench.Allocator("system"), 60)


def test_a_run_without_an_end_or_a_result_fails():
    with pytest.raises(bench.RunFailed, match="no end within 0 s"):
        bench.run_program(["sleep", "60"], bench.Allocator("system"), timeout=0.1)
    with pytest.raises(bench.RunFailed, match="not a result: 'hello"):
        bench.run_case(bench.Case("w", ("echo", "hello")), bench.Allocator("system"))


def test_a_library_whose_malloc_is_not_called_is_no_peer(bench_rows, make_library):
    idle = make_library("idle", "int idle;\n")
    for benchmark in ("mixed", "python"):
        threads = ("--threads", "1") if benchmark == "mixed" else ()
        status, rows = bench_rows(benchmark, *TINY, *threads, "--only", "system,idle", "--peer", f"idle={idle}")
        assert status == 1
        assert re.search(r"the program's malloc is that of .*libc", rows[1]["failure"])


def test_hakmem_that_is_not_in_the_process_is_no_result(twin):
    posing = bench.Allocator("hakmem", twin, is_hakmem=True)
    with pytest.raises(bench.RunFailed, match="not in the process"):
        bench.run_case(bench.workload("mixed", 1, 0.001), posing)


# ---- Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("peers --json x", "peers has no --json"),
        ("quick --threads 1", "quick has no --threads"),
        ("larson --python x", "larson has no --python"),
        ("instructions -n 2", "instructions has no -n"),
        ("phases --peer a=b", "phases has no --peer"),
        ("prodcons --threads 2,3", "must be multiples of 2"),
        ("larson -n 0", "-n is at least 1"),
        ("larson --seconds 0", "--seconds is between"),
        ("larson --threads 0", "--threads are between"),
        ("larson --threads x", "'x' is not N,N"),
        ("larson --threads 1,,2", "'1,,2' is not N,N"),
        ("larson --peer x", "'x' is not NAME=VALUE"),
        ("larson --only a,,b", "'a,,b' is not NAME,NAME"),
        ("larson --env LD_PRELOAD=x", "--env LD_PRELOAD: the rows say"),
        ("python --env PYTHONMALLOC=debug", "--env PYTHONMALLOC: the rows say"),
        ("phases --env HAKMEM_ENABLE_TLS=0", "--env HAKMEM_ENABLE_TLS: the rows say"),
        ("lookup --env HAKMEM_USE_REGISTRY=0", "--env HAKMEM_USE_REGISTRY: the rows say"),
        ("lookup --threads 2", "lookup has no --threads"),
        ("larson --json - --csv -", "over one another"),
        ("larson --json /tmp/x.png --plot /tmp/../tmp/x.png", "over one another"),
        ("larson --csv /tmp", "cannot be written"),
        ("larson --json /no/such/directory/file", "no such directory"),
        ("larson --plot /tmp/picture.txt", "writes .png"),
        ("larson --plot /tmp/x.png --only hakmem", "must name it too"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(arguments.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_allocators_and_impossible_peers_are_refused(tmp_path, twin):
    with pytest.raises(SystemExit, match="nosuch was not found; there are system, hakmem"):
        bench.main(["larson", "--only", "nosuch"])
    for name, path in (("a", f"{tmp_path}/none.so"), ("pymalloc", twin), ("hakmem", twin), ("a,b", twin)):
        with pytest.raises(SystemExit, match="a library that exists"):
            bench.main(["larson", "--peer", f"{name}={path}"])
    with pytest.raises(SystemExit, match="a name of its own"):
        bench.main(["larson", "--peer", f"a={twin}", "--peer", f"a={twin}"])
    spaced = shutil.copy(twin, tmp_path / "a b.so")
    with pytest.raises(SystemExit, match="cannot hold a space"):
        bench.main(["larson", "--only", "system,a", "--peer", f"a={spaced}"])


def test_a_thread_count_given_twice_is_run_once():
    assert bench.parse(["mid", "--threads", "2,1,2"]).threads == [2, 1]


def test_nothing_to_run_is_an_error():
    with pytest.raises(SystemExit, match="nothing to run"):
        bench.main(["phases", *TINY, "--only", "nolock", "--threads", "4"])


def test_no_allocators_variable_leaks_into_a_run(monkeypatch):
    names = """HAKMEM_X MIMALLOC_X TCMALLOC_X JE_MALLOC_CONF MALLOC_CONF RPMALLOC_X SNMALLOC_X GLIBC_TUNABLES
        PYTHONMALLOC PYTHONDEVMODE PYTHONTRACEMALLOC PYTHONHASHSEED LD_PRELOAD""".split()
    for name in names:
        monkeypatch.setenv(name, "1")
    assert not set(names) & bench.Allocator("system").environment().keys()
    assert "PATH" in bench.Allocator("system").environment()


def test_only_what_env_says_reaches_the_runs(bench_rows, monkeypatch):
    monkeypatch.setenv("HAKMEM_ENABLE_TLS", "0")
    options = ["mixed", *TINY, "--threads", "1", "--only", "hakmem"]
    _, (row,) = bench_rows(*options)
    assert row["hit_rate"] > 0.5
    _, (row,) = bench_rows(*options, "--env", "HAKMEM_ENABLE_TLS=0")
    assert row["hit_rate"] == 0


def test_json_and_csv_hold_the_same_rows(tmp_path, capsys):
    names = [str(tmp_path / name) for name in ("rows.json", "rows.csv")]
    options = ["mid", *TINY, "--threads", "1", "--only", "system,hakmem", "--json", names[0], "--csv", names[1]]
    assert bench.main(options) == 0
    assert "hakmem" in capsys.readouterr().out
    document = json.loads((tmp_path / "rows.json").read_text())
    assert document["command"] == " ".join(["bench.py", *options])
    about = document["machine"]
    assert about["logical_cpus"] >= 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["hakmem"])
    assert about["compiler"]
    assert {"thp", "libc", "kernel"} <= about.keys()
    table = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in document["rows"]] == table


# ---- The picture


def test_the_plot_is_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    assert bench.main(["mid", *TINY, "--only", "system,hakmem", "--plot", str(path)]) == 0
    image = pytest.importorskip("matplotlib.image").imread(path)
    red = (image[..., 0] > 0.7) & (image[..., 1] < 0.3) & (image[..., 2] < 0.3)  # hakmem's dots
    assert red.sum() > 100


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(monkeypatch):
    found = bench.importlib.util.find_spec
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    monkeypatch.setattr(bench, "run_program", lambda *_: pytest.fail("something was run"))
    with pytest.raises(SystemExit, match="python -m pip install matplotlib"):
        bench.main(["mid", *TINY, "--plot", "picture.png"])


# ---- Processes of its own


@pytest.fixture
def installed(tmp_path, root, monkeypatch):
    """The files under the names that an installation gives them, beside another module called build."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, own in (("bench.py", "_hakmem_bench.py"), ("build.py", "_hakmem_build.py")):
        shutil.copy(root / name, tmp_path / own)
    shutil.copy(root / "_bench_workloads.c", tmp_path)
    (tmp_path / "build.py").write_text("raise RuntimeError('that is the other build')\n")
    return tmp_path


def test_an_installed_copy_goes_by_its_own_names_and_uses_the_library_as_it_is(installed, run, library):
    shutil.copy(library, installed / build.library_path().name)  # and no C source: it could not be built
    command = [sys.executable, installed / "_hakmem_bench.py"]
    done = run(*command, "mid", *TINY, "--threads", "1", "--only", "system,hakmem", PYTHONPATH=None)
    assert re.search(r"^mid +1 +hakmem ", done.stdout, re.MULTILINE)
    assert "python -m hakmem bench peers" in run(*command, "--help", PYTHONPATH=None).stdout
    done = run(*command, "larson", "--only", "nosuch", check=False, PYTHONPATH=None)
    assert done.stderr.startswith("python -m hakmem bench: nosuch was not found")


def test_without_a_compiler_there_is_one_clear_line(installed, run):
    done = run(sys.executable, installed / "_hakmem_bench.py", "mid", "--only", "system", check=False,
               PYTHONPATH=None, PATH="/nonexistent", CC=None)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("python -m hakmem bench: hakmem needs a C compiler")
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_sees_progress(root):
    command = [sys.executable, root / "bench.py", "mid", *TINY, "--threads", "2", "--only", "system"]
    reader, terminal = os.openpty()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=terminal, check=True, timeout=60)
    os.close(terminal)
    assert b"[1/1] mid, 2 threads: system" in os.read(reader, 10_000)
    os.close(reader)


def is_running(process):
    """As the workload program; one that has ended has no command line any more."""
    try:
        with open(f"/proc/{process}/cmdline") as file:
            return "seconds=60" in file.read()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_one_line_and_the_run_with_it(root, number):
    command = [sys.executable, root / "bench.py", "mid", "--only", "system", "--seconds", "60"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = functools.partial(signal.signal, number, signal.SIG_DFL)  # these tests may run under nohup
    with subprocess.Popen(command, preexec_fn=heed, **pipes) as process:  # noqa: PLW1509 (there is one thread)
        children = root.__class__(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            while not (child := children.read_text().strip()) or not is_running(child):
                time.sleep(0.02)
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    deadline = time.monotonic() + 20
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)
    assert (process.returncode, out, err) == (130, "", "bench.py: stopped\n")


def test_sites_shows_what_a_rule_for_the_blocks_that_stay_brings(bench_rows):
    status, found = bench_rows("sites", "-n", "1")
    rows = {row["allocator"]: row for row in found}
    assert status == 0
    assert set(rows) == {"system", "hakmem", bench.RULED}
    assert all(row["failure"] is None for row in rows.values())
    assert rows[bench.RULED]["peak_rss_bytes"] < 0.8 * rows["hakmem"]["peak_rss_bytes"]
    assert rows[bench.RULED]["faults"] < 0.8 * rows["hakmem"]["faults"]
