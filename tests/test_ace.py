"""ACE learns as its policies' sentences say, keeps its four contracts, and changes nothing where it is off."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from _helpers import ROOT, program, run, succeed, text

import bench
import build
import hakmem

OFF, SHADOW, ON = ({"HAKMEM_ACE": mode} for mode in ("off", "shadow", "on"))
FAST = {"HAKMEM_ACE_MS": "20"}


def ace(case: str, env: dict[str, str], **options: Any) -> str:
    """A case of tests/c/ace.c."""
    return succeed([program("ace.c"), case], env=env, **options)


def with_debug(case: str, env: dict[str, str]) -> None:
    """A case that publishes targets itself, as only the debug library lets it."""
    succeed([program("ace.c"), case], preload=False, first=build.build("debug", quiet=True), env=env)


# ---- the contracts


def test_a_full_ring_drops_and_counts_and_refills_go_on() -> None:
    ace("a_full_ring_drops", {**ON, "HAKMEM_ACE_MS": "60000"})


@pytest.mark.parametrize("mode", [OFF, ON], ids=["off", "on"])
def test_a_target_changes_nothing_before_the_next_refill(mode: dict[str, str]) -> None:
    with_debug("a_target_waits_for_the_next_refill", {**mode, "HAKMEM_ACE_MS": "60000"})


def test_two_million_refills_need_no_memory_for_their_events() -> None:
    ace("events_need_no_memory", {**ON, "HAKMEM_ACE_MS": "10"})


def source() -> str:
    return (ROOT / "_hakmem_backend.c").read_text(encoding="utf-8")


def functions_that(pattern: str) -> set[str]:
    """The functions, and for what stands outside of them the lines, that a pattern occurs in."""
    found, name = set(), ""
    for line in source().splitlines():
        start = re.match(r"^(?:static|HAK_|void|int|__attribute__)[^;=]*?\b(hak_\w+)\(", line)
        if start:
            name = start[1]
        elif line and not line[0].isspace() and line[0] not in "{}/#*":
            name = ""
        if re.search(pattern, line.partition("/*")[0]):
            found.add(name or line)
        if line.startswith("}"):
            name = ""
    return found


@pytest.mark.parametrize(
    ("pattern", "owner"),
    [
        (r"(\br|ring)->(head|tail|every|dropped|event)\b", "hak_ring_"),
        (r"\bhak_target\.", "hak_target_"),
        (r"\bhak_ace\.(?!lock)", "hak_ace_"),
        (r"->(same|quiet|patience|silent|settled)\b", "hak_ace_"),
    ],
)
def test_the_boxes_reach_one_another_only_through_their_functions(pattern: str, owner: str) -> None:
    found = functions_that(pattern)
    assert found
    assert all(name.startswith(owner) for name in found), found


def test_only_ace_publishes_targets() -> None:
    found = functions_that(r"\bhak_target_publish\(") - {"hak_target_publish", "hak_debug_target", "hak_target_init"}
    assert found == {"hak_ace_change_locked", "hak_ace_try_locked", "hak_ace_forget_locked"}


# ---- what is learned


@pytest.mark.parametrize(
    "case",
    [
        "a_busy_class_fetches_more",
        "what_has_no_case_goes_back",
        "a_change_without_gain_is_undone_and_remembered",
    ],
)
def test_what_is_learned(case: str) -> None:
    ace(case, {**ON, **FAST})


def test_memory_that_waves_want_again_is_kept_from_one_to_the_next() -> None:
    ace("waves_are_waited_for", {**ON, **FAST, "HAKMEM_PURGE_MS": "100", "HAKMEM_RETAIN": "1G"})


def test_windows_with_many_drops_are_ignored_and_the_next_have_fewer() -> None:
    ace("drops_are_ignored", {**ON, "HAKMEM_ACE_MS": "100"})


def test_shadow_only_says_what_it_would_do() -> None:
    ace("shadow_only_says", {**SHADOW, **FAST})


def test_a_users_setting_voids_what_was_learned() -> None:
    with_debug("a_setting_voids_what_was_learned", OFF)


# ---- the thread


@pytest.mark.parametrize("mode", [SHADOW, ON], ids=["shadow", "on"])
def test_the_thread_takes_no_signal(mode: dict[str, str]) -> None:
    ace("it_takes_no_signal", {**mode, **FAST})


def test_off_has_no_thread_and_no_ring() -> None:
    ace("off_has_no_thread", OFF)


def test_a_child_of_a_process_with_threads_learns_too() -> None:
    ace("a_child_learns_too", {**ON, **FAST})


def test_where_the_system_gives_no_thread_ace_says_so_once_and_stays_off() -> None:
    first = program("no_threads.c", "-shared", "-fPIC")
    ace("a_refused_thread_is_said_once", {**ON, **FAST}, first=first)


def test_without_thread_caches_there_is_nothing_to_hear_and_all_works() -> None:
    ace("it_takes_no_signal", {**ON, **FAST, "HAKMEM_ENABLE_TLS": "0"})


# ---- off is the plain allocator


def test_the_same_calls_count_the_same_off_and_in_shadow() -> None:
    def counts(mode: dict[str, str]) -> dict[str, int]:
        lines = ace("counted", {**mode, "HAKMEM_ACE_MS": "60000"}).splitlines()
        return {name: int(value) for name, value in map(str.split, lines) if name != "read_us"}

    off, shadow = counts(OFF), counts(SHADOW)
    assert off["refills"] > 1000 < off["allocs"]
    assert off == counts({})
    # pthread_create makes one block
    of_blocks = {"allocs", "cache_hits", "live_blocks", "live_bytes", "cached_bytes", "alloc_bytes", "peak_used_bytes"}
    assert {name for name in off if off[name] != shadow[name]} <= of_blocks
    assert shadow["allocs"] - off["allocs"] <= 1


# ---- the front end


def test_the_mode_is_a_word(python: Any) -> None:
    code = """if True:
        import hakmem, json
        assert hakmem.config.ace == "shadow" == str(hakmem.config.ace) and hakmem.config.ace == 1
        option = hakmem.config.option("ace")
        assert option.words == ("off", "shadow", "on") and option.parse("ON") == 2
        assert "shadow mode, default off" in repr(option)
        try: hakmem.config.ace = "on"
        except hakmem.HakmemError as error: assert "HAKMEM_ACE sets it" in str(error), error
        else: raise AssertionError
        try: option.parse("loud")
        except hakmem.HakmemError as error: assert "off, shadow or on" in str(error), error
        else: raise AssertionError
        assert "shadow" in hakmem.report("config") and "shadow" in hakmem.report("ace")"""
    python(code, HAKMEM_ACE="Shadow")


def test_a_word_that_is_no_mode_is_said() -> None:
    done = run([program("ace.c"), "off_has_no_thread"], env={"HAKMEM_ACE": "loud"})
    assert done.returncode == 0, text(done.stderr)
    assert text(done.stderr) == "hakmem: HAKMEM_ACE=loud: must be one of off|shadow|on; using off\n"


def test_the_report_lists_each_policy_and_its_sentence() -> None:
    declared = re.findall(r'^\tX\((\w+), "\w+", (?:class|all), \d+,', source(), re.MULTILINE)
    rows = hakmem._rows(hakmem._POLICY, hakmem._ace_policies)
    assert [row.name for row in rows] == declared
    shown = hakmem.report("ace")
    for row in rows:
        assert row.rule in shown
        assert row.rule.endswith(".")
        assert row.rule.count(". ") == 0  # one sentence
        assert row.target == row.initial  # this process has ACE off
    assert hakmem.ace_log() == []


def test_the_log_is_read_from_python(python: Any) -> None:
    code = """if True:
        import hakmem, json, time
        blocks = []
        while not any(row.policy == "batch" and row.size == 1024 for row in hakmem.ace_log()):
            blocks += [hakmem.malloc(1024) for _ in range(2000)]
            assert len(blocks) < 3_000_000
            time.sleep(0.001)
        row = next(row for row in hakmem.ace_log() if row.policy == "batch" and row.size == 1024)
        assert (row.old, row.new, row.did, row.unit) == (16, 32, "applied", "blocks"), row
        assert row.windows == 3 and row.evidence >= 64 and "refills" in row.why, row
        tables = json.loads(hakmem.report("ace", fmt="json"))["tables"]
        assert set(tables) == {"policies", "counters", "decisions"}
        assert tables["decisions"][0]["policy"] and "applied" in hakmem.report("ace")
        assert hakmem.memory_stats()["ace_changes"] >= 1"""
    python(code, HAKMEM_ACE="on", HAKMEM_ACE_MS="20")


def test_the_window_is_in_the_options() -> None:
    option = hakmem.config.option("ace_ms")
    assert (option.default, option.min, option.unit, option.when) == (250, 10, "ms", "start")
    assert Path(ROOT / "README.md").read_text(encoding="utf-8").count("HAKMEM_ACE_MS") == 1


def test_the_benchmark_runs_each_load_in_each_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ACE_LOADS", (("mixed", 1), ("waves", 1)))
    rows, shown, _ = bench.ace(bench.parse(["ace", "-n", "1", "--seconds", "0.02"]))
    assert [(row.workload, row.allocator) for row in rows] == list(product(("mixed", "waves"), ("off", "shadow", "on")))
    assert not any(row.failure for row in rows)
    assert all(len(row.ns_per_op_runs) == 1 for row in rows)
    assert "time / off" in shown
    assert shown.count("shadow") == 2
