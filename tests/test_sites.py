"""Blocks are counted for the code or the number that they are for, and a rule for a site does what it says."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from _helpers import C_DIR, ROOT, Argument, build, case_names, cc, cxx, need, program, run, scratch, succeed, text
from test_tsan import check_stress, stress

import hakmem

CAPTURE = {"HAKMEM_SITES": "1"}
P0 = {"HAKMEM_ENABLE_TLS": "0"}
HARDENED = {"HAKMEM_HARDENED": "1"}
WAYS = {"plain": {}, "P0": P0, "capture": CAPTURE, "capture, P0": {**CAPTURE, **P0}, "hardened": HARDENED}
WAYS["hardened, capture"] = {**CAPTURE, **HARDENED}
COUNTING = ["every_way_has_its_caller", "a_block_is_its_last_caller_s", "live_bytes_are_exact_over_threads_and_fork"]
RULES = [
    "lifetimes_stand_in_slabs_of_their_own",
    "a_thread_s_group_blocks_are_freed_by_another",
    "readers_need_no_lock",
]
PLAIN_RULES = [
    *("lifetime_of_large_blocks_changes_nothing", "uncached_blocks_pass_the_stacks"),
    "a_rule_for_retention_comes_late",
]
FULL = "more_sites_than_there_are_rows"
KEPT = "large_blocks_are_kept_as_long_as_a_rule_says"
REFUSED = "no_memory_for_the_table"


def need_runtime(sanitizer: str) -> None:
    empty = scratch() / "sites-empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    line = [*cc(), f"-fsanitize={sanitizer}", str(empty), "-o", str(scratch() / "sites-empty")]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip(f"the compiler's runtime for -fsanitize={sanitizer} is not installed")


def under(settings: dict[str, str], command: list[Argument], variant: str = "", **more: object) -> str:
    """Run a command that must succeed, on the hardened library where that is asked for."""
    name = "hardened" if "HAKMEM_HARDENED" in settings else variant
    if name:
        return succeed(command, env=settings, preload=False, first=build.build(name, quiet=True), **more)
    return succeed(command, env=settings, **more)


@cache
def sites() -> Path:
    return program("sites.c", "-rdynamic")


# ---- what is counted, and what rules do


def test_every_case_of_the_program_is_run() -> None:
    assert {*COUNTING, *RULES, *PLAIN_RULES, FULL, KEPT, REFUSED, "show"} == set(case_names("sites.c"))


@pytest.mark.parametrize("way", [way for way in WAYS if "capture" in way])
@pytest.mark.parametrize("case", COUNTING)
def test_counts_of_sites(case: str, way: str) -> None:
    under(WAYS[way], [sites(), case])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", RULES)
def test_rules(case: str, way: str) -> None:
    under(WAYS[way], [sites(), case])


@pytest.mark.parametrize("way", ["plain", "capture"])
@pytest.mark.parametrize("case", [*PLAIN_RULES, KEPT])
def test_rules_where_threads_have_caches(case: str, way: str) -> None:
    under(WAYS[way], [sites(), case])


def test_a_rule_for_retention_is_kept_on_a_machine_that_has_just_started() -> None:
    young = ["unshare", "--time", "--monotonic", str(2 - int(time.monotonic())), "--fork"]
    if not shutil.which(young[0]) or subprocess.run([*young, "true"], capture_output=True, check=False).returncode:
        pytest.skip("the system's clock cannot be set back for a process")
    succeed([*young, sites(), KEPT])


@pytest.mark.parametrize("way", ["capture", "hardened, capture"])
def test_more_sites_than_there_are_rows_are_counted_in_one(way: str) -> None:
    under(WAYS[way], [sites(), FULL])


def test_a_block_for_whose_note_there_is_no_memory_is_counted_as_such() -> None:
    assert int(under(CAPTURE, [sites(), REFUSED], "debug")) > 1_000


@pytest.mark.parametrize("settings", [{}, CAPTURE], ids=["rules", "capture"])
def test_readers_need_no_lock_under_thread_sanitizer(settings: dict[str, str]) -> None:
    need_runtime("thread")
    flags = ("-rdynamic", "-fsanitize=thread", "-DHAK_NO_OVERRIDE=1")
    check_stress([program("sites.c", *flags, also=ROOT / "_hakmem_backend.c"), "readers_need_no_lock"], settings)


@pytest.mark.soak
@pytest.mark.parametrize("sanitizer", ["thread", "address", "undefined"])
def test_stress_under_sanitizers_with_sites_captured(sanitizer: str) -> None:
    check_stress([stress(sanitizer), 5], {**CAPTURE, "HAKMEM_SITE_RULES": "1:lifetime=long;2:nocache"})


# ---- rules from outside


def shown(**settings: str) -> list[str]:
    """For the site of via_malloc: its place, where its blocks stand, and its policy."""
    (line,) = succeed([sites(), "show"], env={**CAPTURE, **settings}).splitlines()
    return line.split()


PLACE = re.compile(r"sites-c-rdynamic\+0x[0-9a-f]+")


def test_a_rule_finds_code_by_module_and_offset_or_by_symbol() -> None:
    place, *policy = shown()
    assert PLACE.fullmatch(place)
    assert policy == ["among", "-", "-1", "-1", "1"]
    for where in (place, "via_malloc"):
        assert shown(HAKMEM_SITE_RULES=f"{where}:lifetime=long,shard=3") == [place, "apart", "long", "-1", "3", "1"]
    others = (
        f"via_mallo:nocache;via_mallocs:nocache;other.so{place[place.index('+') :]}:nocache;{place}0:nocache;1:shard=1"
    )
    assert shown(HAKMEM_SITE_RULES=others) == [place, *policy]


def test_of_two_rules_for_a_site_the_one_for_its_offset_counts_and_of_one_site_the_last() -> None:
    place = shown()[0]
    rules = f"{place}:lifetime=long;via_malloc:nocache"
    assert shown(HAKMEM_SITE_RULES=rules)[2:] == ["long", "-1", "-1", "1"]
    assert shown(HAKMEM_SITE_RULES=f"{rules};{place}:retain=5")[2:] == ["-", "5", "-1", "1"]
    assert shown(HAKMEM_SITE_RULES=f"{rules};{place}:none")[2:] == ["-", "-1", "-1", "0"]


def test_the_offset_is_the_one_that_addr2line_takes() -> None:
    place = shown()[0]
    found = succeed([need("addr2line"), "-f", "-e", sites(), place[place.index("+") + 1 :]], preload=False)
    assert found.splitlines()[0] == "via_malloc"


def test_a_bad_rule_has_a_line_and_the_others_hold() -> None:
    rules = "x;via_malloc:shard=7;1:lifetime=never;\x1b[2J:nocache;2:nocache,lifetime=long;0:shard=1;9:;"
    done = run([sites(), "show"], env={**CAPTURE, "HAKMEM_SITE_RULES": rules})
    assert text(done.stdout).split()[4] == "7"
    lines = text(done.stderr).splitlines()
    bad = ["x", "1:lifetime=never", "?[2J:nocache", "2:nocache,lifetime=long", "0:shard=1", "9:"]
    assert [re.sub(r": not a rule for a site.*; ignored$", "", line) for line in lines] == [
        f"hakmem: HAKMEM_SITE_RULES: {rule}" for rule in bad
    ]


def test_a_rule_for_code_says_that_sites_must_be_captured() -> None:
    done = run(["true"], env={"HAKMEM_SITE_RULES": "name:nocache;42:nocache"})
    (line,) = text(done.stderr).splitlines()
    assert line.startswith("hakmem: HAKMEM_SITE_RULES: name:nocache: ")
    assert "HAKMEM_SITES=1" in line


NUMBER = r"(0x[0-9a-fA-F]+|[0-9]+)"


def is_rule(rule: str) -> bool:
    """The grammar once more."""
    where, colon, what = rule.partition(":")
    number = re.fullmatch(NUMBER, where)
    if number:
        good = 0 < int(where, 16 if where.startswith("0x") else 10) < 1 << 64
    elif "+0x" in where:
        module, _, offset = where.rpartition("+0x")
        good = bool(
            re.fullmatch(r"[!-~]+", module) and re.fullmatch(r"[0-9a-fA-F]+", offset) and int(offset, 16) < 1 << 64
        )
    else:
        good = bool(re.fullmatch(r"[A-Za-z_.$][A-Za-z0-9_.$]*", where))
    words = what.split(",")
    for word in words:
        name, equals, value = word.partition("=")
        most = {"retain": 3_600_000, "shard": 65_535}.get(name)
        if equals and most is not None and re.fullmatch(NUMBER, value):
            good &= int(value, 16 if value.startswith("0x") else 10) <= most
        else:
            good &= word in ("lifetime=long", "lifetime=short", "nocache", "none")
    if "none" in words and len(set(words)) > 1:
        return False
    return good and bool(colon) and not ("nocache" in words and any(word.startswith("lifetime") for word in words))


def some_rule(chance: random.Random) -> str:
    wheres = [
        "42",
        "0x2a",
        "0",
        "00",
        "9" * 20,
        "f",
        "f9",
        "9f",
        "_Z1fv",
        "a+0x1",
        "+0x1",
        "lib.so+0xfF",
        "a+0xg",
        "a+0x",
    ]
    whats = [
        "nocache",
        "none",
        "lifetime=long",
        "lifetime=short",
        "lifetime",
        "retain=0",
        "retain=3600001",
        "shard=65535",
    ]
    whats += ["shard=0x10", "shard=", "retain=-1", "", " nocache", "NOCACHE"]
    where = chance.choice(wheres) + chance.choice([""] * 6 + ["+", "+0x12", " ", "%"])
    return where + chance.choice([":"] * 9 + [""]) + ",".join(chance.choices(whats, k=chance.choice([1, 1, 1, 2, 3])))


RANDOM = """
import ctypes, sys
library = ctypes.CDLL(None)
for line in sys.stdin:
    print(library.hak_site_rule(line.rstrip("\\n").encode()))
"""


def test_what_is_a_rule_and_what_is_not_as_a_grammar_has_it() -> None:
    chance = random.Random(3)
    rules = [some_rule(chance) for _ in range(4000)]
    out = succeed([sys.executable, "-c", RANDOM], env=CAPTURE, stdin="\n".join(rules).encode())
    good = 0
    for rule, code in zip(rules, out.splitlines()):
        assert (code == "0") == is_rule(rule), (rule, code)
        good += code == "0"
    assert 200 < good < 3000


def compiled(command: list[str], name: str, flags: str) -> Path:
    target = scratch() / name
    common = "-std=gnu11 -g -Wall -Wextra -pthread -DHAK_NO_OVERRIDE=1 -Dwrite=fuzz_write".split()
    line = [*command, *common, *flags.split(), str(C_DIR / "fuzz_sites.c"), "-o", str(target), "-ldl"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=180, check=False)
    if re.search(r"cannot find|No such file", done.stderr):
        pytest.skip(f"{command[0]} has not got all runtimes of {flags}")
    assert done.returncode == 0, done.stderr
    return target


SANITIZE = "-fno-sanitize-recover=all -fsanitize=address,undefined"


@cache
def fuzzer() -> Path:
    return compiled(cc(), "fuzz_sites", f"-O0 {SANITIZE}")


def test_random_rules_under_sanitizers() -> None:
    done = run([fuzzer(), 1, 3_000], preload=False)
    assert done.returncode == 0, text(done.stderr)
    assert text(done.stdout).startswith("3000 inputs, ")


def test_a_full_table_is_looked_up_in_few_steps() -> None:
    done = run([fuzzer(), "full"], preload=False)
    assert done.returncode == 0, text(done.stderr)
    figures = re.findall(r"[0-9.]+", text(done.stdout))
    found, longest, missed, farthest = map(float, figures)
    assert found < 2.5
    assert missed < 4
    assert max(longest, farthest) < 100


@pytest.mark.soak
def test_ten_minutes_of_rules_found_by_coverage() -> None:
    by_coverage = compiled([need("clang")], "libfuzzer_sites", f"-O1 -DFUZZ_LIBFUZZER=1 {SANITIZE},fuzzer")
    done = run([by_coverage, "-max_total_time=600", "-max_len=600"], preload=False, cwd=scratch(), timeout=900)
    assert done.returncode == 0, text(done.stderr)[-4000:]


# ---- ordinary programs, with every call captured and rules for some


@pytest.mark.parametrize("level", [{}, pytest.param(HARDENED, marks=pytest.mark.soak)], ids=["plain", "hardened"])
def test_programs_do_the_same_where_sites_are_captured(level: dict[str, str]) -> None:
    settings = {**CAPTURE, **level, "HAKMEM_SITE_RULES": "malloc:nocache;via_malloc:shard=1"}
    lines = "\n".join(str(n * 7919 % 10007) for n in range(5_000)).encode()
    script = "import json; print(len(json.dumps([{'n': str(n)} for n in range(3000)])))"
    assert under(settings, ["sort", "-n"], stdin=lines) == succeed(["sort", "-n"], stdin=lines, preload=False)
    under(settings, [program("containers.cc")])
    command: list[Argument] = [sys.executable, "-c", script]
    assert under({**settings, "PYTHONMALLOC": "malloc"}, command) == succeed(command, preload=False)
    command = [program("model.c", "-O2"), 1, 2000, 100]
    assert under(settings, command) == succeed(command)


CALLS = [name for name in case_names("libc_surface.c") if name not in ("calloc_zero", "statistics_calls")]


@pytest.mark.parametrize("case", CALLS)
def test_the_c_library_s_calls_do_the_same_where_sites_are_captured(case: str) -> None:
    under(CAPTURE, [program("libc_surface.c"), case])


@pytest.mark.soak
@pytest.mark.parametrize("settings", [P0, HARDENED], ids=["P0", "hardened"])
@pytest.mark.parametrize("case", CALLS)
def test_the_c_library_s_calls_in_other_modes_where_sites_are_captured(case: str, settings: dict[str, str]) -> None:
    under({**CAPTURE, **settings}, [program("libc_surface.c"), case])


@pytest.mark.soak
@pytest.mark.parametrize("settings", [{}, P0, HARDENED], ids=["plain", "P0", "hardened"])
def test_other_programs_do_the_same_where_sites_are_captured(settings: dict[str, str]) -> None:
    for source in ("new_delete.cc", "threads.c", "fork.c", "regressions.c"):
        for case in case_names(source):
            if case not in ("realloc_without_mremap", "freed_beside_a_purge"):  # they need a library of their own
                under({**CAPTURE, **settings}, [program(source), case])


NEW = """
#include <new>
struct alignas(128) Wide { char c[128]; };
extern "C" __attribute__((noinline)) void a_hundred()
{
    for (int i = 0; i < 25; i++) {
        delete new int;
        delete[] new char[70000];
        delete new (std::nothrow) double;
        delete new Wide;
    }
}
"""


def test_new_has_its_caller() -> None:
    source, target = scratch() / "hundred.cc", scratch() / "hundred.so"
    source.write_text(NEW)
    line = [*cxx(), "-std=c++17", "-O0", "-fPIC", "-shared", str(source), "-o", str(target)]
    subprocess.run(line, check=True, capture_output=True, timeout=60)
    script = f"import ctypes, hakmem; ctypes.CDLL({str(target)!r}).a_hundred()\n"
    script += "print([row.allocs for row in hakmem.site_table() if row.function.startswith('a_hundred+')])"
    out = succeed([sys.executable, "-c", script], env={**CAPTURE, "PYTHONPATH": str(ROOT)})
    assert out == "[25, 25, 25, 25]\n"


# ---- Python


def test_rules_and_sites_from_python() -> None:
    hakmem.site_rule(1001, lifetime="long", retain=0, shard=5)
    hakmem.site_rule("0x3ea", cache=False)  # 1002
    try:
        p = hakmem.alloc_at(100, 1001)
        hakmem.free_at(p, 1001)
        found = {row.site: row for row in hakmem.site_table()}
        assert (found[1001].allocs, found[1001].bytes, found[1001].lifetime) == (1, 100, "long")
        assert (found[1001].retain, found[1001].shard, found[1001].cached, found[1002].cached) == (0, 5, 1, 0)
        rules = {row.where: row for row in hakmem.site_rules()}
        assert rules["1001"].lifetime == "long"
        assert rules["1002"].cached == 0
        report = hakmem.report("sites")
        assert "lifetime=long,retain=0,shard=5" in report
        assert "nocache" in report
    finally:
        hakmem.site_rule(1001)
        hakmem.site_rule(1002)
    assert not {"1001", "1002"} & {row.where for row in hakmem.site_rules()}


@pytest.mark.parametrize(
    ("site", "keywords", "message"),
    [
        (0, {"shard": 1}, "not a rule"),
        (-1, {"shard": 1}, "not a rule"),
        (1 << 64, {"shard": 1}, "not a rule"),
        (1, {"shard": 65536}, "not a rule"),
        (1, {"retain": -1}, "not a rule"),
        (1, {"lifetime": "eternal"}, "not a rule"),
        (1, {"lifetime": "long", "cache": False}, "not a rule"),
        ("name", {"shard": 1}, "HAKMEM_SITES=1"),
        ("lib.so+0x12", {"shard": 1}, "HAKMEM_SITES=1"),
        ("1:none;2", {"shard": 1}, "neither the number"),
        ("a\0b", {"shard": 1}, "neither the number"),
        ("é", {"shard": 1}, "neither the number"),
    ],
)
def test_what_python_refuses(site: object, keywords: dict[str, object], message: str) -> None:
    before = hakmem.site_rules()
    with pytest.raises(hakmem.HakmemError, match=message):
        hakmem.site_rule(site, **keywords)
    assert hakmem.site_rules() == before


def test_there_are_as_many_rules_as_there_may_be() -> None:
    script = "import hakmem\nfor n in range(1, 1026): hakmem.site_rule(n, shard=n)"
    done = run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, preload=False)
    assert text(done.stderr).splitlines()[-1].endswith("1025:shard=1025: there are as many rules as there may be")


@pytest.mark.parametrize("option", ["--sites", "-osites=1"])
def test_run_captures_sites_and_the_report_names_them(option: str) -> None:
    script = "import hakmem; keep = [bytearray(3000) for _ in range(1000)]; print(hakmem.report('sites'))"
    command = [sys.executable, "-m", "hakmem", "run", option, "--pythonmalloc", "--", sys.executable, "-c", script]
    out = succeed(command, env={"PYTHONPATH": str(ROOT)}, preload=False)
    rows = [line for line in out.splitlines() if re.match(r"\S+\+0x[0-9a-f]+ ", line)]
    assert len(rows) == 40
    assert any(float(found[1]) >= 2.8 for row in rows if (found := re.search(r"(\S+) MiB +\S+ +\S+ MiB", row)))


def test_a_pointer_of_a_group_is_owned_by_its_class() -> None:
    hakmem.site_rule(77, lifetime="short")
    p = hakmem.alloc_at(100, 77)
    owner = hakmem.owner_of(p)
    assert (owner.base, owner.size, owner.tier, owner.state) == (p, hakmem.usable_size(p), "tiny", "live")
    assert hakmem.class_table()[owner.class_].size == owner.size
    hakmem.free(p)
    with pytest.raises(hakmem.HakmemError, match="already free"):
        hakmem.free(p)
    hakmem.site_rule(77)


# ---- what a rule is worth


def test_a_rule_lowers_the_peak_of_a_program_whose_long_lived_blocks_are_strewn() -> None:
    peak = {}
    for rule in ("", "1:lifetime=long"):
        command: list[Argument] = [build.workloads(quiet=True), "strewn", "phase=8388608"]
        out = succeed(command, env={"HAKMEM_SITE_RULES": rule} if rule else {})
        found = re.search(r'"peak_rss_bytes": (\d+)', out)
        assert found
        peak[rule] = int(found[1])
    assert peak["1:lifetime=long"] < 0.6 * peak[""], peak
