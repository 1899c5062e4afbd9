"""Two snapshots of a process tell what grew between them, also from files; a file that is none is refused in a line."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from _helpers import ROOT, environment
from _shown import shown

import hakmem

KIB, MIB = 1 << 10, 1 << 20


def give_back(pointers: list[int]) -> None:
    for pointer in pointers:
        hakmem.free(pointer)


def command(*arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    started = [sys.executable, "-m", "hakmem", *map(str, arguments)]
    done = subprocess.run(started, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_a_snapshot_has_all_records_of_this_process() -> None:
    taken = hakmem.snapshot()
    assert (taken.pid, taken.version) == (os.getpid(), hakmem.__version__)
    assert abs(taken.time - time.time()) < 60
    assert taken.command == Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    assert taken.rss > MIB
    assert {*hakmem._Here.tables} - {"segment"} | {"pieces"} == set(taken.records)
    assert taken.records["stats"][0]["committed_bytes"] == sum(taken.pools.values())
    assert set(taken.options) == set(hakmem.config)
    assert f"process {os.getpid()}" in repr(taken)
    assert "segment" in hakmem.snapshot(segments=True).records


def test_pieces_are_the_segments_added_up() -> None:
    held = [hakmem.malloc(700) for _ in range(5000)]
    try:
        records = hakmem.snapshot(segments=True).records
    finally:
        give_back(held)
    for name in ("total_size", "blocks", "used_blocks", "dirty_bytes"):
        assert sum(row[name] for row in records["pieces"]) == sum(row[name] for row in records["segment"]) > 0
    assert sum(row["segments"] for row in records["pieces"]) == len(records["segment"])
    kinds = [(row["state"], row["tier"], row["block_size"]) for row in records["pieces"]]
    assert len(set(kinds)) == len(kinds)
    (slabs,) = [row for row in records["pieces"] if row["state"] == "slab" and row["block_size"] == 704]
    assert slabs["used_blocks"] >= 5000


@pytest.mark.parametrize("by", ["class", "tier", "pool"])
def test_what_grew_most_comes_first(by: str) -> None:
    gone = [hakmem.malloc(2000) for _ in range(1000)]
    older = hakmem.snapshot()
    held = [hakmem.malloc(size) for size in (30_000, 100) for _ in range(500)] + [hakmem.malloc(70 * MIB)]
    give_back(gone)
    newer = hakmem.snapshot()
    give_back(held)
    found = newer.compare_to(older, by)
    assert isinstance(found, hakmem.Comparison)
    assert all(isinstance(row, hakmem.SnapshotDiff) for row in found)
    assert [row.size_diff for row in found] == sorted((row.size_diff for row in found), reverse=True)
    rows = {row.name: row for row in found}
    if by == "pool":
        assert rows["live_bytes"].size_diff >= 70 * MIB + 500 * 30_000 - 3 * MIB
        grown = newer.records["stats"][0]["committed_bytes"] - older.records["stats"][0]["committed_bytes"]
        assert sum(row.size_diff for row in found) == grown
        return
    live = [each.records["stats"][0] for each in (older, newer)]
    assert sum(row.size_diff for row in found) == live[1]["live_bytes"] - live[0]["live_bytes"]
    assert sum(row.count_diff for row in found) == live[1]["live_blocks"] - live[0]["live_blocks"] == 1
    assert found[0].name == "whale"
    assert found[0].count_diff == 1
    if by == "class":
        assert (rows["l2 32 KiB"].count_diff, rows["l2 32 KiB"].size_diff) == (500, 500 * 32 * KIB)
        assert (rows["tiny 112 B"].count_diff, found[-1].name, found[-1].count_diff) == (500, "l2 2 KiB", -1000)
    back = older.compare_to(newer, by)
    assert {row.name: -row.size_diff for row in back} == {row.name: row.size_diff for row in found}


def test_a_comparison_is_a_table_of_what_changed() -> None:
    older = hakmem.snapshot()
    held = [hakmem.malloc(100) for _ in range(1000)]
    newer = hakmem.snapshot()
    give_back(held)
    found = newer.compare_to(older)
    assert len(found) > 1
    rows = json.loads(found.report("json"))["changes"]
    assert rows == [{"class": "tiny 112 B", "size": found[0].size, "size_diff": 112_000, "count": found[0].count,
                     "count_diff": 1000}]  # fmt: skip
    assert "109.4 KiB" in str(found)
    assert str(found) == repr(found) == found.report()
    assert f"process {os.getpid()}" in str(found)
    assert "<table>" in found._repr_html_()
    assert "(changes: none)" in newer.compare_to(newer).report()


def test_a_comparison_escapes_what_a_program_may_call_itself() -> None:
    odd = hakmem.snapshot()
    odd.command = "<script>"
    odd.pools["<img>"] = 5
    shown_as = odd.compare_to(hakmem.snapshot(), "pool")._repr_html_()
    assert "&lt;script&gt;" in shown_as
    assert "&lt;img&gt;" in shown_as
    assert "<script>" not in shown_as
    assert "<img>" not in shown_as


def test_blocks_of_sites_with_a_rule_are_in_the_class_of_their_size(python: Any) -> None:
    python("""if True:
        import hakmem
        older = hakmem.snapshot()
        hakmem.site_rule(5, lifetime="long")
        p = [hakmem.alloc_at(100, site) for site in (5, 7) for _ in range(10)]
        newer = hakmem.snapshot()
        row = newer.compare_to(older)[0]
        assert (row.name, row.count_diff, row.size_diff) == ("tiny 112 B", 20, 20 * 112), row""")


def test_a_comparison_by_what_there_is_not() -> None:
    taken = hakmem.snapshot()
    with pytest.raises(ValueError, match="there are class, tier, pool and site"):
        taken.compare_to(taken, "poetry")
    with pytest.raises(hakmem.HakmemError, match=r"did not capture sites: .*HAKMEM_SITES=1"):
        taken.compare_to(taken, "site")


def test_a_snapshot_comes_back_from_its_file(tmp_path: Path) -> None:
    taken = hakmem.snapshot(segments=True)
    taken.dump(tmp_path / "a.json")
    again = hakmem.Snapshot.load(tmp_path / "a.json")
    assert vars(again) == vars(taken)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["hakmem_snapshot"] == 1


def spoiled(tmp_path: Path, **changes: Any) -> str:
    values = {"hakmem_snapshot": 1, **vars(hakmem.snapshot()), **changes}
    return json.dumps({name: value for name, value in values.items() if value is not ...})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hakmem_snapshot": 2}, "a snapshot of format 2; hakmem .* knows format 1"),
        ({"hakmem_snapshot": ...}, "no snapshot of hakmem"),
        ({"records": {}}, "no snapshot of hakmem"),
        ({"records": []}, "no snapshot of hakmem"),
        ({"records": {"tier": [], "class": [{"tier": "tiny"}]}}, "no snapshot of hakmem"),
        ({"pools": {"live_bytes": "much"}}, "no snapshot of hakmem"),
        ({"rss": None}, "no snapshot of hakmem"),
        ({"command": ...}, "no snapshot of hakmem"),
        ("", "no snapshot of hakmem"),
        ("[1]", "no snapshot of hakmem"),
        ("\xff", "no snapshot of hakmem"),
        ("[" * 100_000, "no snapshot of hakmem"),
        (b"\xff\xfe\x00", "no snapshot of hakmem"),
    ],
)
def test_a_file_that_is_no_snapshot_is_refused_in_a_line(tmp_path: Path, change: Any, text: str) -> None:
    file = tmp_path / "odd.json"
    made = spoiled(tmp_path, **change) if isinstance(change, dict) else change
    file.write_bytes(made if isinstance(made, bytes) else made.encode())
    with pytest.raises(hakmem.HakmemError, match=rf"^{file} is {text}$"):
        hakmem.Snapshot.load(file)


def test_the_commands_tell_what_another_process_took(tmp_path: Path, capsys: Any) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    with shown() as other:
        assert command("snapshot", other.pid, "-o", a).stdout == ""
        other.allocate(5000, 2000)
        printed = command("snapshot", other.pid, "--segments").stdout
        b.write_text(printed, encoding="utf-8")
        loaded = hakmem.Snapshot.load(b)
    assert loaded.pid == other.pid
    assert loaded.records["segment"]
    assert loaded.rss > hakmem.Snapshot.load(a).rss
    rows = json.loads(command("diff", a, b, "--fmt", "json").stdout)["changes"]
    assert rows[0]["class"] == "l2 5 KiB"
    assert rows[0]["count_diff"] == 2000
    assert hakmem.main(["diff", str(a), str(b), "--by", "tier", "--fmt", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["changes"]
    assert (rows[0]["tier"], rows[0]["count_diff"] >= 2000) == ("l2", True)
    assert hakmem.main(["diff", str(a), str(b), "--by", "pool"]) == 0
    said = capsys.readouterr().out
    assert "RSS from" in said
    assert "count" not in said
    done = command("diff", a, tmp_path / "none", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr == f"hakmem: diff: {tmp_path / 'none'}: No such file or directory\n"
    capsys.readouterr()
    for wrong, why in (
        (["diff", a, b, "--by", "site"], f"diff: process {other.pid} did not capture sites"),
        (["snapshot", other.pid, "-o", a], f"snapshot: there is no process {other.pid}"),
        (["diff", a, ROOT / "hakmem.py"], f"diff: {ROOT / 'hakmem.py'} is no snapshot of hakmem"),
    ):
        assert hakmem.main(list(map(str, wrong))) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"hakmem: {why}")
        assert said.count("\n") == 1
    with pytest.raises(SystemExit):
        hakmem.main(["snapshot"])
    assert "the following arguments are required: pid" in capsys.readouterr().err


def test_sites_are_compared_where_they_are_captured() -> None:
    with shown(sites=1) as other:
        older = hakmem.snapshot(other.pid)
        other.allocate(7000, 300)
        found = hakmem.snapshot(other.pid).compare_to(older, "site")
    grown = [row for row in found if row.count_diff >= 300]
    assert grown
    assert found[0] == grown[0]
    assert 300 * 7000 <= grown[0].size_diff < 300 * 7000 + 100_000
    assert "+0x" in grown[0].name


def test_a_process_that_is_asleep_is_taken_without_its_pieces(monkeypatch: Any) -> None:
    ask = hakmem._Process.ask
    impatient = functools.wraps(ask)(lambda self, *what, timeout=0.1: ask(self, *what, timeout=min(timeout, 0.1)))
    monkeypatch.setattr(hakmem._Process, "ask", impatient)
    with shown(page=1, sites=1) as other:
        while not hakmem._Process(other.pid, fresh=0).stats()["allocs"]:  # until it has had time to show something
            other.allocate(100_000, 50)
        taken = hakmem.snapshot(other.pid)
    assert taken.records["stats"][0]["allocs"] > 0
    assert not {"pieces", "site", "segment"} & set(taken.records)
    assert taken.compare_to(taken)
    with pytest.raises(hakmem.HakmemError, match="has no sites: it was asleep"):
        taken.compare_to(taken, "site")
