"""What hakmem shows at a prompt, of a block of code and as a picture, are the figures of the allocator."""

from __future__ import annotations

import base64
import functools
import json
import mmap
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections import Counter
from typing import Any

import pytest
from _helpers import ROOT, environment, library
from _shown import shown

import hakmem

KIB, MIB = 1 << 10, 1 << 20
UNIT, SUPERSLAB = 64 * KIB, 4 * MIB


def give_back(pointers: list[int]) -> None:
    for pointer in pointers:
        hakmem.free(pointer)


# ---- track


def test_a_block_of_code_is_counted_to_the_block() -> None:
    with hakmem.track() as t:
        small = [hakmem.malloc(100) for _ in range(1000)]
        large = hakmem.malloc(3 * MIB)
        give_back(small[:300])
    give_back([*small[300:], large])
    stats = t.stats
    assert (stats["allocs"], stats["frees"], stats["live_blocks"]) == (1001, 300, 701)
    size = {row["tier"]: row["size"] for row in stats["classes"]}["tiny"]
    whale = stats["alloc_bytes"] - 1000 * size
    assert 3 * MIB <= whale <= 3 * MIB + UNIT
    assert stats["live_bytes"] == 700 * size + whale
    assert stats["freed_bytes"] == 300 * size
    (row,) = stats["classes"]
    assert (row["allocs"], row["frees"], row["live_blocks"], row["live_bytes"]) == (1000, 300, 700, 700 * size)
    assert {row["name"]: row["live_blocks"] for row in stats["tiers"]} == {"tiny": 700, "whale": 1}
    assert stats["seconds"] > 0


def test_an_empty_block_counts_nothing() -> None:
    with hakmem.track() as t:
        pass
    assert (t.stats["allocs"], t.stats["frees"], t.stats["classes"], t.stats["tiers"]) == (0, 0, [], [])


def test_a_tracker_does_not_count_itself_where_hakmem_serves_all_of_python() -> None:
    source = "import hakmem\nwith hakmem.track() as t: pass\nprint(t.stats['alloc_bytes'], t.stats['freed_bytes'])"
    env = environment({"LD_PRELOAD": str(library()), "PYTHONMALLOC": "malloc"})
    done = subprocess.run([sys.executable, "-c", source], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(int(size) < 4 * KIB for size in done.stdout.split()), done.stdout  # Python's own, for the calls


def test_blocks_nest_and_one_tracker_counts_one_block_at_a_time() -> None:
    with hakmem.track() as outer:
        hakmem.free(hakmem.malloc(50))
        with hakmem.track() as inner:
            hakmem.free(hakmem.malloc(50))
            with pytest.raises(RuntimeError, match="nested blocks need one each"), inner:
                pass
        until_now = outer.stats["allocs"]
        hakmem.free(hakmem.malloc(50))
    assert (inner.stats["allocs"], until_now, outer.stats["allocs"]) == (1, 2, 3)


def test_a_tracker_that_has_not_begun_says_so() -> None:
    with pytest.raises(RuntimeError, match="counted nothing yet"):
        hakmem.Track().report()
    assert repr(hakmem.track()) == "<hakmem.Track, nothing counted yet>"
    assert hakmem.track()._repr_html_() is None


def test_other_threads_are_counted_too() -> None:
    def work() -> None:
        give_back([hakmem.malloc(64) for _ in range(500)])

    with hakmem.track() as t:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert t.stats["allocs"] == t.stats["frees"] == 1500
    assert "all threads" in str(t)


def test_a_decorated_function_is_counted_call_by_call_also_if_it_fails() -> None:
    t = hakmem.track()

    @t
    def work(count: int) -> str:
        """Its own."""
        if count > 1:
            work(count - 1)
        give_back([hakmem.malloc(64) for _ in range(count)])
        if count == 4:
            raise KeyError(count)
        return "x"

    assert (work(3), t.stats["allocs"], work.__doc__) == ("x", 6, "Its own.")  # the outermost ends last
    with pytest.raises(KeyError):
        work(4)
    assert t.stats["allocs"] == 10


def test_faults_and_memory_of_a_block() -> None:
    pages = 20 * MIB // mmap.PAGESIZE
    with hakmem.track() as t:
        place = mmap.mmap(-1, 20 * MIB)
        place.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(pages):
            place[page * mmap.PAGESIZE] = 1
    place.close()
    assert pages <= t.stats["minor_faults"] < pages + 1000
    assert 19 * MIB < t.stats["rss_after"] - t.stats["rss_before"] < 24 * MIB
    assert t.stats["rss_after"] <= t.stats["rss_peak"] <= t.stats["rss_peak_bound"]


TOUCH = """
import hakmem, mmap
def touch(size):
    with mmap.mmap(-1, size) as place:
        for _ in range(size >> 20): place.write(bytes(1 << 20))
"""


def track_alone(source: str) -> list[int]:
    """MiB that a program prints, whose memory has no past."""
    command = [sys.executable, "-c", TOUCH + source]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(word) >> 20 for word in done.stdout.split()]


def test_the_peak_within_a_block_is_known_if_it_is_a_new_one() -> None:
    before, after, peak, bound = track_alone("""
with hakmem.track() as t: touch(40 << 20)
print(*[t.stats["rss_" + key] for key in ("before", "after", "peak", "peak_bound")])""")
    assert peak == bound
    assert before + 38 <= peak <= before + 50
    assert after < before + 10


def test_a_lower_peak_is_bounded_by_the_earlier_one_unless_the_mark_is_reset() -> None:
    peak, bound, reset, reset_bound, outer, outer_bound = track_alone("""
touch(60 << 20)
with hakmem.track() as t: touch(20 << 20)
try:
    with hakmem.track() as outer:
        touch(90 << 20)
        with hakmem.track(reset_peak=True) as r: touch(20 << 20)
except OSError as error: raise SystemExit(str(error))
print(*[one.stats["rss_" + key] for one in (t, r, outer) for key in ("peak", "peak_bound")])""")
    assert bound >= peak + 55
    assert reset == reset_bound < bound - 30
    assert reset >= peak + 17
    assert outer == outer_bound >= bound + 25  # the reset of the inner one has not cost it its peak


def test_a_tracker_reports_in_any_format_and_escapes_html() -> None:
    with hakmem.track() as t:
        block = hakmem.malloc(70_000)
    hakmem.free(block)
    assert "80 KiB" in str(t)
    assert str(t) == repr(t) == t.report()
    tables = json.loads(t.report("json"))
    assert set(tables) == {"block", "tiers", "classes"}
    assert {row["counter"]: row["value"] for row in tables["block"]}["allocs"] == 1
    assert t._repr_html_().count("<table>") == 3
    table = hakmem._Table("<t>", [{"<b>": "<script>", "n": 1}], {})
    shown_as = hakmem._in_one("<i>&", [table, hakmem._Table("<none>", [], {})], "html")
    assert "<p>(&lt;none&gt;: none)</p>" in shown_as
    assert "<p>&lt;i&gt;&amp;</p>" in shown_as
    assert "&lt;script&gt;" in shown_as
    assert not re.search("<(script|i|b|none)>", shown_as)


def test_a_report_is_text_and_in_jupyter_tables() -> None:
    hakmem.free(hakmem.malloc(100))
    shown_as = hakmem.report("pools")
    assert "<table>" not in shown_as
    page = shown_as._repr_html_()  # type: ignore[attr-defined]
    assert page.count("<table>") == len(json.loads(hakmem.report("pools", "json"))["tables"]) == 4
    assert page.startswith("<p>hakmem ")
    assert "<p>committed</p>" in page


def test_a_negative_size_reads_like_a_size() -> None:
    assert hakmem._shown(-3 * MIB, "bytes") == "-3 MiB"


def test_a_monitor_is_a_picture_in_jupyter_if_there_is_matplotlib(monkeypatch: Any) -> None:
    with hakmem.RssMonitor(60) as monitor:
        pass
    assert hakmem.RssMonitor(60)._repr_png_() is None
    with monkeypatch.context() as patched:
        patched.setattr(hakmem.importlib.util, "find_spec", lambda _name: None)
        assert monitor._repr_png_() is None
    pytest.importorskip("matplotlib").use("agg")
    assert (monitor._repr_png_() or b"").startswith(b"\x89PNG")


# ---- heatmap


def segment(address: int, size: int, state: str, used: int = 0, blocks: int = 0, dirty: int = 0) -> Any:
    block_size = size // blocks if blocks else 0
    return hakmem._SEGMENT.record(address, size, state, "", block_size, blocks, used, 0, dirty, 0, 0)


BASE = 0x7F0000000000
PIECES = [
    segment(BASE, UNIT, "slab", 1, 8),
    segment(BASE + UNIT, UNIT, "slab", 8, 8),
    segment(BASE + 2 * UNIT, 2 * UNIT, "orphan", 3, 8),
    segment(BASE + 4 * UNIT, UNIT, "at hand", dirty=UNIT),
    segment(BASE + 5 * UNIT, 9 * UNIT, "free", dirty=UNIT),
    segment(BASE + 14 * UNIT, 50 * UNIT, "free"),
    segment(BASE + 2 * SUPERSLAB, 32 * UNIT, "run", 1, 1),
    segment(BASE + 2 * SUPERSLAB + 32 * UNIT, 32 * UNIT, "kept whale", 0, 1),
    segment(BASE + (1 << 40), 100 * MIB, "whale", 1, 1),
]


def test_the_picture_has_a_line_for_each_superslab_and_a_sign_for_each_unit() -> None:
    picture = hakmem.Heatmap("<it>", UNIT, PIECES)
    lines = picture.text(80, 24, plain=False).splitlines()
    assert lines[0] == "<it>"
    assert lines[3] == "      0 ▁█ooh---------" + "·" * 50 + "   3%"
    assert lines[4] == "      8 " + "#" * 32 + "k" * 32 + "  50%"
    assert "1 whales, 100 MiB: mappings of their own" in lines[-1]
    assert any(line.split() == ["o", "128", "KiB", *"slab of a thread that has ended".split()] for line in lines)
    plain = picture.text(80, 24, plain=True)
    assert plain.isascii()
    assert plain.splitlines()[3] == "      0 18ooh---------" + "." * 50 + "   3%"
    assert max(map(len, lines[3:5])) <= 80
    assert list(picture.superslabs) == [BASE, BASE + 2 * SUPERSLAB]


@pytest.mark.parametrize(("width", "height"), [(80, 10), (40, 10), (20, 3), (200, 7), (14, 1)])
def test_a_large_picture_is_scaled_down_to_the_terminal(width: int, height: int) -> None:
    pieces = [segment(BASE + n * SUPERSLAB, SUPERSLAB, "slab", n % 9, 8) for n in range(300)]
    lines = hakmem.Heatmap("it", UNIT, pieces).text(width, height).splitlines()
    drawn = [line for line in lines if line.endswith("%")]
    assert 0 < len(drawn) <= height
    assert max(map(len, drawn)) <= width
    assert len(set("".join(line[8:-5] for line in drawn))) > (1 if width > 14 else 0)


def test_signs_for_several_units_say_what_most_of_them_are() -> None:
    assert hakmem._commonest(bytes([1, 1, 4])) == 1
    assert hakmem._commonest(bytes([7, 14, 14, 1])) == 12  # the mean of the slabs
    assert hakmem._commonest(bytes([4, 4, 14])) == 4


def png(data: bytes) -> tuple[list[bytes], bytes]:
    """The rows of palette indices, and the palette, of a PNG file whose sums are right."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, parts = 8, {}
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size) == (zlib.crc32(name + body),)
        parts[name] = body
        at += 12 + size
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, kind, rest, list(parts)[-1]) == (8, 3, [0, 0, 0], b"IEND")
    raw = zlib.decompress(parts[b"IDAT"])
    assert len(raw) == height * (width + 1)
    rows = [raw[row * (width + 1) : (row + 1) * (width + 1)] for row in range(height)]
    assert all(row[0] == 0 for row in rows)
    return [row[1:] for row in rows], parts[b"PLTE"]


def test_the_png_has_the_colour_of_each_unit(tmp_path: Any) -> None:
    picture = hakmem.Heatmap("<it>", UNIT, PIECES)
    picture.to_png(tmp_path / "it.png")
    rows, palette = png((tmp_path / "it.png").read_bytes())
    assert len(rows) == 2 * 8
    assert bytes(rows[0][::8]) == bytes(picture.superslabs[BASE])
    assert bytes(rows[8][::8]) == bytes(picture.superslabs[BASE + 2 * SUPERSLAB])
    assert rows[7] == bytes(512)  # between two
    assert max(map(max, rows)) < len(palette) // 3
    html = picture._repr_html_()
    assert "<p>&lt;it&gt;</p>" in html
    assert base64.b64decode(re.findall('base64,([^"]*)', html)[0]) == picture._repr_png_()


def test_a_picture_of_nothing_is_one() -> None:
    picture = hakmem.Heatmap("it", UNIT, [])
    assert picture.text(80, 24) == "it"
    assert png(picture._repr_png_())


def test_the_picture_of_this_process_adds_up_to_its_superslabs() -> None:
    held = [hakmem.malloc(3000) for _ in range(2000)]
    try:
        picture = hakmem.heatmap()
        stats = hakmem.memory_stats()
    finally:
        give_back(held)
    assert len(picture.superslabs) == stats["superslabs"]
    drawn = Counter[int]()
    for units in picture.superslabs.values():
        drawn.update(units)
    assert drawn[0] == 0
    slabs = sum(count for mark, count in drawn.items() if mark >= hakmem._STATES["slab"])
    assert slabs * UNIT >= 2000 * 3000
    used = stats["live_bytes"] + stats["cached_bytes"] + stats["transit_bytes"] - stats["whale_bytes"]
    assert sum(picture.used.values()) == pytest.approx(used, rel=0.001)
    assert str(picture) == repr(picture)
    assert f"process {os.getpid()}" in str(picture)


def test_the_picture_of_another_process_shows_what_it_holds() -> None:
    with shown() as other:
        before = hakmem.heatmap(other.pid)
        other.allocate(60_000, 600)
        after = hakmem.heatmap(other.pid)
        assert f"process {other.pid}" in after.heading
        assert sum(after.used.values()) - sum(before.used.values()) >= 600 * 60_000
        assert len(after.superslabs) >= len(before.superslabs) + 8


def test_a_process_that_is_asleep_cannot_be_drawn_and_that_is_said_in_a_line(monkeypatch: Any) -> None:
    ask = hakmem._Process.ask
    impatient = functools.wraps(ask)(lambda self, *what, timeout=0.1: ask(self, *what, timeout=min(timeout, 0.1)))
    monkeypatch.setattr(hakmem._Process, "ask", impatient)
    with shown(page=1) as other, pytest.raises(hakmem.HakmemError, match=rf"process {other.pid}: .*stats_page=2"):
        hakmem.heatmap(other.pid)


def test_signs_are_plain_where_the_output_has_no_others() -> None:
    for encoding, has in (("utf-8", True), ("ascii", False), ("latin-1", False)):
        source = "import hakmem; p = hakmem.malloc(9); print(hakmem.heatmap())"
        env = environment({"PYTHONIOENCODING": encoding})
        done = subprocess.run([sys.executable, "-c", source], env=env, cwd=ROOT, capture_output=True, check=True)
        assert ("▁" in done.stdout.decode(encoding)) is has
