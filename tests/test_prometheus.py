"""What Prometheus scrapes are the counters as C declares them, of the processes that may be seen and no others."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from _helpers import ROOT, environment, library
from _shown import shown

import hakmem

client = pytest.importorskip("prometheus_client")
parser = pytest.importorskip("prometheus_client.parser")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> tuple[dict[str, Any], Samples]:
    """The families by name, and each sample by its name and labels, none twice."""
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    samples: Samples = {}
    for family in families.values():
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples
            samples[key] = sample.value
    return families, samples


def exported(pids: Any = None) -> tuple[dict[str, Any], Samples]:
    registry = client.CollectorRegistry()
    registry.register(hakmem.prometheus_collector(pids))
    return parsed(client.generate_latest(registry).decode())


def value(samples: Samples, name: str, **labels: Any) -> float:
    """The one sample of this name with these labels, whatever others it has."""
    wanted = {(label, str(text)) for label, text in labels.items()}
    (found,) = [number for (sample, has), number in samples.items() if sample == name and wanted <= has]
    return found


def test_every_counter_is_exported_under_a_name_that_prometheus_likes() -> None:
    held = [hakmem.malloc(100) for _ in range(50)]
    families, _ = exported()
    for pointer in held:
        hakmem.free(pointer)
    for field in hakmem._STATS.fields:
        part = "committed" in field.view.split()
        name = "hakmem_part_bytes" if part else f"hakmem_{field.name}"
        assert families[name].type == ("counter" if "rises" in field.view.split() else "gauge"), name
        assert field.unit != "bytes" or name.endswith("_bytes"), name
    for family in families.values():
        assert re.fullmatch("hakmem_[a-z0-9_]+", family.name)
        assert family.documentation
        for sample in family.samples:
            assert sample.name == family.name + "_total" * (family.type == "counter")
            assert sample.labels["pid"] == str(os.getpid())


def test_the_figures_are_those_of_this_process() -> None:
    held = [hakmem.malloc(100) for _ in range(1000)]
    stats, (_, samples) = hakmem.memory_stats(), exported()
    for pointer in held:
        hakmem.free(pointer)
    comm = open("/proc/self/comm", encoding="utf-8").read().strip()  # noqa: SIM115
    me = {"pid": os.getpid(), "command": comm}
    assert value(samples, "hakmem_up", pid=os.getpid()) == 1
    assert value(samples, "hakmem_info", version=hakmem.__version__, variant=hakmem.mode().variant, **me) == 1
    assert value(samples, "hakmem_allocs_total", **me) == stats["allocs"]
    parts = {dict(labels)["part"]: n for (name, labels), n in samples.items() if name == "hakmem_part_bytes"}
    assert sum(parts.values()) == value(samples, "hakmem_committed_bytes") == stats["committed_bytes"]
    assert parts["live"] == stats["live_bytes"]
    assert value(samples, "hakmem_tier_live_bytes", tier="tiny", **me) == stats["allocated_bytes.tiny.current"]
    row = next(row for row in hakmem.class_table() if row.size == 112)
    assert value(samples, "hakmem_class_allocs_total", **{"class": 112}, tier="tiny") == row.allocs >= 1000
    assert value(samples, "hakmem_lock_taken_total", lock="heaps") >= 1
    assert value(samples, "hakmem_shard_superslabs", shard=0) >= 1
    assert value(samples, "hakmem_process_resident_memory_bytes", **me) > 1 << 20


RISES = """if True:
    import hakmem, threading
    def load():
        p = [hakmem.malloc(size) for size in (10, 100, 5000, 100_000, 2 << 20, 80 << 20) for _ in range(30)]
        thread = threading.Thread(target=lambda: [hakmem.free(q) for q in p[::2]])
        thread.start(); thread.join()
        for q in p[1::2]: hakmem.free(q)
    def counted():
        found = {}
        for kind in ("stats", "class", "tier", "lock", "shard"):
            source = hakmem._Here()
            for index, row in enumerate(source.rows(kind)):
                for field, value in zip(source.layouts[kind].fields, row):
                    if field.unit: found[kind, index, field.name] = "rises" in field.view.split(), value
        return found
    seen = []
    for _ in range(4):
        load(); seen.append(counted()); hakmem.trim(); hakmem.reset_peak_memory_stats(); seen.append(counted())
    fell = {key for old, new in zip(seen, seen[1:]) for key in new if key in old and new[key][1] < old[key][1]}
    assert not [key for key in fell if seen[-1][key][0]], fell
    only = {(key[0], key[2]) for key in seen[-1]} - {(key[0], key[2]) for key in fell}
    pairs = list(zip(seen, seen[1:]))
    grew = {(key[0], key[2]) for old, new in pairs for key in new if new[key][1] > old.get(key, new[key])[1]}
    unmarked = sorted(name for kind, name in only & grew if kind == "stats" and not seen[-1]["stats", 0, name][0])
    print(*unmarked)"""


def test_counters_that_are_said_to_rise_never_fall(python: Any) -> None:
    """And gauges that only rise here are those that stay high after a load, not counters whose mark was forgotten."""
    unmarked = set(python(RISES).stdout.split())
    high = ("heaps", "keys", "bytes", "superslabs", "capacity")
    assert all(any(word in name for word in high) for name in unmarked), unmarked


def test_other_processes_are_exported_and_those_that_are_gone_are_down() -> None:
    with shown(page=1) as one, shown(page=2) as two, shown(page=0) as hidden:
        two.allocate(5000, 500)
        hakmem.snapshot(two.pid)  # makes it publish; the collector does not wait so long
        pids = [one.pid, two.pid, hidden.pid, os.getpid(), 2**22]
        _, samples = exported(pids)
        up = {int(dict(labels)["pid"]): n for (name, labels), n in samples.items() if name == "hakmem_up"}
        assert up == {one.pid: 1, two.pid: 1, hidden.pid: 0, os.getpid(): 1, 2**22: 0}
        assert value(samples, "hakmem_class_live_blocks", pid=two.pid, **{"class": 5120}) >= 500
        assert value(samples, "hakmem_age_seconds", pid=two.pid) < 60
        before = value(samples, "hakmem_allocs_total", pid=two.pid)
        two.allocate(100, 300)
        hakmem.snapshot(two.pid)
        assert value(exported([two.pid])[1], "hakmem_allocs_total", pid=two.pid) >= before + 300
    assert set(exported([one.pid])[1]) == {("hakmem_up", frozenset({("pid", str(one.pid))}))}


def test_the_processes_that_are_found_are_those_that_show_themselves() -> None:
    with shown(page=1) as one, shown(page=0) as hidden, open(hakmem._shown_files(one.pid, "stats")[0], "rb") as others:
        assert "memfd:hakmem-stats" in os.readlink(f"/proc/self/fd/{others.fileno()}")  # it has one, of another
        found = list(hakmem._shown_pids())
    assert found.count(one.pid) == 1
    assert not {hidden.pid, os.getpid()} & set(found)


ODD = """
import fcntl, os, sys
sys.path.insert(0, "")
import hakmem, struct
file = os.memfd_create("hakmem-stats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
text = sys.argv[1].encode().decode("unicode_escape").encode()
places = 1 << 12, 256, len(text), 1024, 64, 2048
head = hakmem._HEAD.pack(b"hakmem", 1, 2, os.getpid(), 0, *places, int(sys.argv[2]), *[0] * 5)
os.pwrite(file, head.ljust(256, b"\\0") + text.ljust(3840, b"\\0"), 0)
fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("text", "sections"),  # the last one is one of another version, of which nothing is known
    [
        ("", 0),
        (r"hakmem\t1\tx\n", 0),
        (r"hakmem\t1\tx\nrecord\tstats\t8\t2560\t1\nfield\tbad name\tQ\tblocks\tpools\t0\thelp\n", 1),
        (r"hakmem\t1\tx\nrecord\tstats\t8\t2560\t1\nfield\todd\tQ\tblocks\tpools\t0\thelp\n", 1),
    ],
)
def test_a_process_that_shows_nonsense_does_not_cost_the_others_their_figures(text: str, sections: int) -> None:
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    odd = subprocess.Popen([sys.executable, "-c", ODD, text, str(sections)], env=environment(), cwd=ROOT, **pipes)
    with odd, shown() as one:
        assert odd.stdout.readline() == "ready\n"
        assert {odd.pid, one.pid} <= set(hakmem._shown_pids())
        _, samples = exported([odd.pid, one.pid])
        assert [value(samples, "hakmem_up", pid=pid) for pid in (odd.pid, one.pid)] == [0, 1]
        odd.kill()


def test_a_process_that_ends_during_the_scan_does_no_harm(monkeypatch: Any) -> None:
    files, gone = hakmem._shown_files, []
    with shown(page=1) as one, shown(page=1) as two:

        def vanishing(pid: int, name: str) -> list[str]:
            found = files(pid, name)
            if pid == one.pid and not gone:
                gone.append(pid)
                one.process.kill()
                one.process.wait()
            return found

        monkeypatch.setattr(hakmem, "_shown_files", vanishing)
        found = list(hakmem._shown_pids())
        assert gone
        assert two.pid in found
        assert one.pid not in found


def test_counters_of_an_older_version_are_exported_as_those_of_ours() -> None:
    fields = tuple(field._replace(view="pools") for field in hakmem._STATS.fields)  # which did not say which ones rise
    other = hakmem._Here()
    other.layouts = {**other.layouts, "stats": hakmem._Layout("stats", hakmem._STATS.structure, fields)}
    same = {(sample.name, sample.rises, *sample.labels) for sample in hakmem._samples(hakmem._Here())}
    assert {(sample.name, sample.rises, *sample.labels) for sample in hakmem._samples(other)} == same


@contextlib.contextmanager
def exporter(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The exporter, and the address that it prints."""
    started = [sys.executable, "-m", "hakmem", "exporter", "--port", "0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process: Any = subprocess.Popen(started, env=environment(), cwd=ROOT, **pipes)
    try:
        said = process.stdout.readline()
        assert said.startswith("hakmem exporter at http://"), process.communicate()
        yield process, said.split()[-1]
    finally:
        process.kill()
        process.communicate()


def fetch(address: str) -> tuple[dict[str, Any], Samples]:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return parsed(answer.read().decode())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_exporter_serves_all_processes_on_the_loopback_until_a_signal(number: signal.Signals) -> None:
    with shown() as one, exporter() as (process, address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", address)
        families, samples = fetch(address)
        assert value(samples, "hakmem_up", pid=one.pid) == 1
        with shown() as two:
            assert value(fetch(address)[1], "hakmem_up", pid=two.pid) == 1
        assert ("hakmem_up", frozenset({("pid", str(two.pid))})) not in fetch(address)[1]
        assert families["hakmem_allocs"].type == "counter"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")


def test_several_scrapes_at_once_get_whole_answers() -> None:
    with shown() as one, exporter() as (_, address):
        answers: list[Samples] = []
        threads = [threading.Thread(target=lambda: answers.append(fetch(address)[1])) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [value(samples, "hakmem_up", pid=one.pid) for samples in answers] == [1] * 6


def test_the_exporter_refuses_in_a_line() -> None:
    with exporter() as (_, address):
        port = address.rpartition(":")[2].partition("/")[0]
        for arguments, why in (
            (["--port", port], "Address already in use"),
            (["--port", "65536"], "--port 65536: there are 0 to 65535"),
            (["--port", "0", "--host", "256.0.0.1"], ""),
        ):
            started = [sys.executable, "-m", "hakmem", "exporter", *arguments]
            done = subprocess.run(started, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert re.fullmatch(rf"hakmem: exporter: .*{why}.*\n", done.stderr), done.stderr


def test_without_the_package_it_is_said_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(ImportError, match=r"needs prometheus_client: .* -m pip install prometheus_client"):
        hakmem.prometheus_collector()


def test_a_program_on_hakmem_exports_itself() -> None:
    source = """if True:
        import hakmem, prometheus_client
        prometheus_client.REGISTRY.register(hakmem.prometheus_collector())
        print(prometheus_client.generate_latest().decode())"""
    env = environment({"LD_PRELOAD": str(library())})
    done = subprocess.run([sys.executable, "-c", source], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    _, samples = parsed(done.stdout)
    assert value(samples, "hakmem_allocs_total") > 100
