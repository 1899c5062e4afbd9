"""What a process shows of itself is whole, true and its own, and nothing is shown or written unless asked for."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from _helpers import ROOT, build, cc, environment, library, program, run, scratch, succeed, text

PAGE = {"HAKMEM_STATS_PAGE": "1"}
REPORT = re.compile(r"hakmem \S+ \S+, process (\d+), (on a signal|at its end), \d+\.\d{3} s after its first call\n\n")

IN_ITSELF = """description commands obeys_in_the_next_slow_path a_childs_page_is_its_own a_child_without_forks_handlers
    a_child_in_its_parents_memory gone_after_exec a_daemon rubbish errno_stays more_heaps_than_rows""".split()


def reports(said: str) -> list[tuple[str, str]]:
    """The processes that reported, and when; each has its whole text."""
    found = REPORT.findall(said)
    assert len(found) == said.count(" live_bytes ") == said.count("\ntier ") == said.count("hakmem "), said[:3000]
    return found


# ---- readings


def readings(threads: int, most: int, seconds: int, loaded: Path) -> list[float]:
    """Whole, begun anew, publications seen, torn, and the last one's seconds, of readings while a program runs."""
    command = [program("live_busy.c"), str(threads)]
    settings = environment({**PAGE, "LD_PRELOAD": str(loaded)})
    with subprocess.Popen(command, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            pid = int(busy.stdout.readline())
            said = succeed([program("live_reader.c"), pid, most, seconds], preload=False, timeout=600)
            busy.communicate(timeout=60)
        finally:
            busy.kill()
    assert busy.returncode == 0
    return [float(word) for word in said.split()]


def test_no_reading_is_torn() -> None:
    whole, _, seen, torn, _, _ = readings(4, 1_000_000, 2, library())
    assert torn == 0
    assert whole > 1000
    assert seen > 1


@pytest.mark.soak
def test_none_of_1_000_000_readings_is_torn() -> None:
    whole, _, seen, torn, _, _ = readings(4, 1_000_000, 600, library())
    assert (whole, torn) == (1_000_000, 0)
    assert seen > 10


def test_readings_are_torn_where_the_writer_does_not_say_that_it_writes() -> None:
    source = (ROOT / "_hakmem_backend.c").read_text(encoding="utf-8")
    for right, wrong in (
        ("(void)hak_exchange(&head->seq, seq + 1);", "(void)hak_exchange(&head->seq, seq);"),
        ("hak_store_release(&head->seq, seq + 2);", "hak_store_release(&head->seq, seq);"),
        ("return rest > HAK_LIVE_MS ? rest : HAK_LIVE_MS;", "return 0;"),  # as often as it can
    ):
        assert source.count(right) == 1
        source = source.replace(right, wrong)
    mistaken = scratch() / "torn.c"
    mistaken.write_text(source, encoding="utf-8")
    flags = ["-O1", "-fPIC", "-shared", "-pthread", "-fno-builtin", "-fvisibility=hidden", "-ftls-model=initial-exec"]
    command = [*cc(), "-std=gnu11", *flags, str(mistaken), "-o", str(scratch() / "torn.so"), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    assert readings(4, 1_000_000, 1, scratch() / "torn.so")[3] > 0


# ---- the page and commands


@pytest.mark.parametrize("case", IN_ITSELF)
def test_a_process_with_a_page(case: str) -> None:
    succeed([program("live_cases.c"), case], env=PAGE)


@pytest.mark.parametrize("tls", ["1", "0"])
def test_what_is_published_adds_up_once_the_program_is_quiet(tls: str) -> None:
    env = {**PAGE, "HAKMEM_SITE_RULES": "42:nocache", "HAKMEM_ENABLE_TLS": tls}
    succeed([program("live_cases.c"), "rows"], env=env)


def test_there_is_room_for_the_longest_texts() -> None:
    rules = ";".join(f"{i:x>480}:nocache" for i in range(130))
    env = {**PAGE, "HAKMEM_SITES": "1", "HAKMEM_SITE_RULES": rules}
    succeed([program("live_cases.c"), "long_texts"], env=env)


@pytest.mark.parametrize("case", ["commands", "obeys_in_the_next_slow_path", "a_childs_page_is_its_own"])
def test_the_same_without_thread_caches(case: str) -> None:
    succeed([program("live_cases.c"), case], env={**PAGE, "HAKMEM_ENABLE_TLS": "0"})


@pytest.mark.parametrize("tls", ["1", "0"])
def test_a_thread_answers_while_the_program_sleeps(tls: str) -> None:
    env = {"HAKMEM_STATS_PAGE": "2", "HAKMEM_ENABLE_TLS": tls}
    succeed([program("live_cases.c"), "answers_while_it_sleeps"], env=env)


def test_the_smallest_stack_that_a_thread_may_have_is_enough() -> None:
    env = {**PAGE, "HAKMEM_REPORT_SIGNAL": "USR2", "HAKMEM_SITES": "1"}
    done = run([program("live_cases.c"), "small_stacks"], env=env)
    assert done.returncode == 0, text(done.stderr)[-2000:]
    assert len(reports(text(done.stderr))) == 3


def test_a_library_that_is_loaded_late_has_a_page() -> None:
    succeed([program("live_cases.c"), "loaded_late"], env={**PAGE, "LATE": str(library())}, preload=False)


def test_what_rises_never_falls() -> None:
    succeed([program("live_cases.c"), "what_rises_never_falls"], env=PAGE)


def test_texts_of_rules_that_come_and_go() -> None:
    succeed([program("live_cases.c"), "texts_of_rules_that_come_and_go"], env={**PAGE, "HAKMEM_SITES": "1"})


def test_a_page_for_which_there_is_no_memory_leaves_nothing_behind() -> None:
    env = {**PAGE, "LD_PRELOAD": str(build.build("debug", quiet=True))}
    succeed([program("live_cases.c"), "no_memory_for_the_page"], env=env, preload=False)


def test_details_for_which_there_is_no_memory() -> None:
    env = {**PAGE, "LD_PRELOAD": str(build.build("debug", quiet=True))}
    succeed([program("live_cases.c"), "no_memory_for_details"], env=env, preload=False)


def test_no_page_where_it_is_not_asked_for() -> None:
    succeed([program("live_cases.c"), "has_none"])


@pytest.mark.parametrize("limit", ["-f 0", "-n 4"])
def test_no_page_and_no_harm_where_a_limit_forbids_it(limit: str) -> None:
    # the names of /proc/self/fd cannot be read without a descriptor
    script = f'ulimit {limit} && exec "$0" "$1"'
    case = "has_none" if limit == "-f 0" else "ends_with_children"
    succeed(["sh", "-c", script, program("live_cases.c"), case], env=PAGE)


def test_no_page_and_no_harm_where_the_system_call_is_forbidden() -> None:
    done = run([program("live_cases.c"), "without_the_system_call"], env=PAGE)
    if done.returncode == 77:
        pytest.skip("the system takes no seccomp filter")
    assert (done.returncode, text(done.stderr)) == (0, "")


def test_little_address_space_is_no_harm() -> None:
    succeed([program("live_cases.c"), "ends_with_children"], env={"HAKMEM_STATS_PAGE": "2"}, limit_kib=200_000)


@pytest.mark.parametrize("switch", ["1", "2"])
def test_fork_from_many_threads_with_a_page(switch: str) -> None:
    said = succeed([program("forks.c", "-O2"), 60], env={"HAKMEM_STATS_PAGE": switch}, timeout=300)
    assert said == "60 of 60 children ended with 0\n"


# ---- reports


def test_a_report_on_a_signal_by_the_next_slow_path_of_the_process_alone() -> None:
    for changes in ({}, PAGE):
        done = run([program("live_cases.c"), "report_on_a_signal"], env={"HAKMEM_REPORT_SIGNAL": "USR2", **changes})
        assert done.returncode == 0, text(done.stderr)
        said = text(done.stderr)
        assert [when for _, when in reports(said)] == ["on a signal"] * 2
        assert len({pid for pid, _ in reports(said)}) == 1
        assert said.count("signal\n") == 2


@pytest.mark.parametrize("case", ["report_with_an_own_handler", "report_to_who_ignores_it"])
def test_a_signal_that_the_program_has_a_use_for_is_its_own(case: str) -> None:
    done = run([program("live_cases.c"), case], env={"HAKMEM_REPORT_SIGNAL": "USR2"})
    # the second case runs alone without the first, so that our handler is there
    assert (done.returncode, len(reports(text(done.stderr)))) == (0, int(case == "report_to_who_ignores_it"))


def test_reports_of_a_process_and_its_children_on_stderr() -> None:
    done = run([program("live_cases.c"), "ends_with_children"], env={"HAKMEM_REPORT_AT_EXIT": "stderr"})
    assert done.returncode == 0
    found = reports(text(done.stderr))
    assert [when for _, when in found] == ["at its end"] * 3  # _exit is no end
    assert len({pid for pid, _ in found}) == 3


def test_reports_in_a_file_of_each_process(tmp_path: Path) -> None:
    succeed([program("live_cases.c"), "ends_with_children"], env={"HAKMEM_REPORT_AT_EXIT": f"{tmp_path}/a.%p.%p.txt"})
    written = sorted(tmp_path.iterdir())
    assert len(written) == 3
    for path in written:
        [(pid, _)] = reports(path.read_text())
        assert path.name == f"a.{pid}.{pid}.txt"
        assert path.stat().st_mode & 0o777 == 0o600


def test_reports_are_appended_to_a_file(tmp_path: Path) -> None:
    for _ in range(2):
        succeed([program("live_cases.c"), "ends_with_children"], env={"HAKMEM_REPORT_AT_EXIT": f"{tmp_path}/all"})
    assert len(reports((tmp_path / "all").read_text())) == 6


@pytest.mark.parametrize("name", ["/no/such/%p\033", "%p" * 512])
def test_a_report_that_cannot_be_written_is_said_to_be_missing(name: str, tmp_path: Path) -> None:
    done = run([program("live_cases.c"), "has_none"], env={"HAKMEM_REPORT_AT_EXIT": name}, cwd=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"hakmem: no report: [ -~]{1,200}: error \d+\n", text(done.stderr))
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_that_nobody_reads_is_no_place_for_a_report_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = run([program("live_cases.c"), "has_none"], env={"HAKMEM_REPORT_AT_EXIT": str(tmp_path / "pipe")}, timeout=20)
    assert done.returncode == 0
    assert text(done.stderr).startswith("hakmem: no report: ")


def test_a_report_that_nobody_reads_does_not_kill_the_program() -> None:
    settings = environment({"HAKMEM_REPORT_AT_EXIT": "stderr", "LD_PRELOAD": str(library())})
    command = [program("live_cases.c"), "ends_after_its_reader"]
    with subprocess.Popen(command, env=settings, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        process.stderr.close()
        process.stdin.close()
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full"])
def test_a_report_to_a_stderr_that_takes_nothing_does_no_harm(how: str) -> None:
    succeed(["sh", "-c", f'exec "$0" has_none {how}', program("live_cases.c")], env={"HAKMEM_REPORT_AT_EXIT": "stderr"})


def test_a_report_to_a_file_that_may_not_grow_does_not_kill_the_program(tmp_path: Path) -> None:
    script = 'ulimit -f 1 && exec "$0" ends_with_children'  # a block of 512 bytes or of 1,024
    succeed(["sh", "-c", script, program("live_cases.c")], env={"HAKMEM_REPORT_AT_EXIT": str(tmp_path / "report")})
    assert 0 < (tmp_path / "report").stat().st_size <= 1024


def test_a_process_that_ends_inside_the_allocator_does_not_hang() -> None:
    done = run([program("live_cases.c"), "ends_in_the_middle"], env={"HAKMEM_REPORT_AT_EXIT": "stderr"}, timeout=30)
    assert done.returncode == 3
    assert text(done.stderr) == "hakmem: no report: the process ends in the middle of a call of the allocator\n"


def test_a_process_ends_while_its_threads_publish() -> None:
    for _ in range(5):
        env = {**PAGE, "HAKMEM_REPORT_AT_EXIT": "stderr"}
        done = run([program("live_cases.c"), "ends_while_others_publish"], env=env, timeout=30)
        assert done.returncode == 0
        assert len(reports(text(done.stderr))) == 1
