"""A Buffer gives its memory back once and never under a view; an RssMonitor sees memory come and go."""

from __future__ import annotations

import csv
import ctypes
import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hakmem

MIB = 1 << 20


def held() -> int:
    gc.collect()
    return hakmem.total_allocated_bytes()


# ---- Buffer


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 3 * MIB])
@pytest.mark.parametrize("align", [1, 16, 64, 4096, 2 * MIB])
def test_a_buffer_is_as_large_and_as_aligned_as_asked(size: int, align: int) -> None:
    with hakmem.Buffer(size, align=align) as buffer:
        assert len(buffer) == memoryview(buffer).nbytes == size
        assert buffer.address % align == 0
        assert size == 0 or hakmem.usable_size(buffer.address) >= size
        assert f"{size:,} bytes at {buffer.address:#x}" in repr(buffer)


def test_a_view_reads_and_writes_the_memory() -> None:
    buffer = hakmem.Buffer(8)
    view = memoryview(buffer)
    assert (view.format, view.shape, view.readonly) == ("B", (8,), False)
    view[:] = b"abcdefgh"
    assert ctypes.string_at(buffer.address, 8) == b"abcdefgh"
    buffer[0] = 65
    buffer[1:3] = b"BC"
    assert bytes(view) == bytes(buffer.view()) == b"ABCdefgh"
    assert buffer[2] == ord("C")
    assert bytes(buffer[-2:]) == b"gh"
    assert list(buffer) == list(b"ABCdefgh")
    assert view.cast("Q")[0] == int.from_bytes(b"ABCdefgh", sys.byteorder)


def test_the_memory_goes_back_once() -> None:
    before = held()
    for _ in range(3):
        buffer = hakmem.Buffer(MIB)
        assert held() == before + hakmem.usable_size(buffer.address)
        buffer.close()
        buffer.close()
        del buffer
        assert held() == before


def test_the_memory_of_a_buffer_that_is_forgotten_goes_back() -> None:
    before = held()
    hakmem.Buffer(MIB)
    assert held() == before


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a class cannot say what memoryview() of it gets before 3.12")
def test_close_gives_the_memory_back_while_the_object_lives() -> None:
    before = held()
    buffer = hakmem.Buffer(MIB)
    buffer.close()
    assert held() == before
    with pytest.raises(ValueError, match="closed"):
        memoryview(buffer)  # type: ignore[arg-type]


def test_a_view_keeps_the_memory() -> None:
    before = held()
    buffer = hakmem.Buffer(1000)
    view = memoryview(buffer)[10:20]
    buffer.close()
    del buffer
    view[:] = b"0123456789"
    again = [hakmem.malloc(1000) for _ in range(100)]
    for pointer in again:
        ctypes.memset(pointer, 0, 1000)
        hakmem.free(pointer)
    assert bytes(view) == b"0123456789"
    del view
    assert held() == before


def test_a_view_keeps_the_memory_through_a_cycle_that_the_collector_takes_apart() -> None:
    kept: list[memoryview] = []

    class Logger:
        def __init__(self) -> None:
            self.buffer, self.itself = hakmem.Buffer(1000), self
            self.view = memoryview(self.buffer)  # type: ignore[arg-type]

        def __del__(self) -> None:
            kept.append(self.view)

    before = held()
    logger = Logger()
    address = logger.buffer.address
    del logger
    gc.collect()
    assert hakmem.owner_of(address).state == "live"
    kept.pop()[0] = 1
    assert held() == before


def test_the_class_of_a_buffer_makes_buffers_of_any_size() -> None:
    class Named(hakmem.Buffer):
        name = "mine"

    for buffer in (hakmem.Buffer(100), Named(100)):
        other = type(buffer)(10)
        assert len(other) == 10
        assert type(other).__name__ == type(buffer).__name__
    assert isinstance(other, Named)
    assert other.name == "mine"
    assert len({buffer, other, other}) == 2


def test_buffers_that_live_to_the_end_of_the_process_end_without_a_word(python: Any) -> None:
    source = """if True:
        import hakmem, sys, types
        kept = hakmem.Buffer(100); view = memoryview(kept)
        sys.modules["other"] = other = types.ModuleType("other")
        other.buffer = hakmem.Buffer(10); other.cycle = other"""
    done = python(source)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_closed_buffer_raises() -> None:
    with hakmem.Buffer(10) as buffer:
        assert not buffer.closed
    assert buffer.closed
    assert "closed" in repr(buffer)
    uses: list[Any] = [
        buffer.view, lambda: buffer.address, lambda: len(buffer), lambda: buffer[0], lambda: list(buffer),
        lambda: buffer.__setitem__(0, 1), buffer.__enter__,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()
    buffer.close()


def test_a_buffer_is_closed_when_its_block_raises() -> None:
    with pytest.raises(KeyError), hakmem.Buffer(10) as buffer:
        raise KeyError
    assert buffer.closed


def test_a_buffer_that_cannot_be_raises() -> None:
    with pytest.raises(MemoryError):
        hakmem.Buffer(1 << 62)
    with pytest.raises(ValueError, match="negative"):
        hakmem.Buffer(-1)
    with pytest.raises(ValueError, match="power of two"):
        hakmem.Buffer(10, align=24)
    with pytest.raises(TypeError):
        hakmem.Buffer(1.5)  # type: ignore[arg-type]


def test_numpy_takes_a_buffer() -> None:
    numpy = pytest.importorskip("numpy")
    before = held()
    buffer = hakmem.Buffer(800, align=64)
    numbers = numpy.frombuffer(buffer, dtype="f8")
    numbers[:] = 1.5
    assert numbers.shape == (100,)
    assert numbers.ctypes.data == buffer.address
    buffer.close()
    del buffer
    assert numbers.sum() == 150
    del numbers
    assert held() == before


def test_files_read_into_a_buffer(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 100)
    with hakmem.Buffer(64) as buffer, open(path, "rb", buffering=0) as file:
        assert file.readinto(buffer) == 64  # type: ignore[arg-type]
        assert bytes(buffer.view()) == b"x" * 64


# ---- RssMonitor


def watched() -> hakmem.RssMonitor:
    """A monitor of 40 MiB that came and went."""
    with hakmem.RssMonitor(0.01) as monitor:
        with hakmem.Buffer(40 * MIB) as buffer:
            ctypes.memset(buffer.address, 1, len(buffer))
            until = len(monitor.samples) + 3
            while len(monitor.samples) < until:
                time.sleep(0.01)
        del buffer
        hakmem.trim()
    return monitor


def test_a_monitor_sees_memory_come_and_go() -> None:
    monitor = watched()
    first, last = monitor.samples[0], monitor.samples[-1]
    top = max(monitor.samples, key=lambda sample: sample.rss)
    assert isinstance(first, hakmem.RssSample)
    assert monitor.peak == top.rss >= first.rss + 35 * MIB
    assert top.live - first.live >= 40 * MIB
    assert top.committed >= top.live + top.cached
    assert last.live == first.live
    assert last.rss < monitor.peak - 30 * MIB
    times = [sample.seconds for sample in monitor.samples]
    assert times == sorted(times)
    assert not [thread for thread in threading.enumerate() if thread.name == "hakmem-rss"]


def test_a_monitor_reports(tmp_path: Path) -> None:
    monitor = watched()
    text = monitor.report()
    assert text.splitlines()[0].split() == ["memory", "start", "end", "lowest", "highest", "highest", "at", "unit"]
    rows = {row["memory"]: row for row in json.loads(monitor.report(fmt="json"))}
    assert rows["rss"]["highest"] == monitor.peak
    assert rows["live"]["highest"] >= 40 * MIB
    monitor.to_csv(tmp_path / "samples.csv")
    with open(tmp_path / "samples.csv", encoding="utf-8", newline="") as file:
        heading, *lines = csv.reader(file)
    assert tuple(heading) == hakmem.RssSample._fields
    assert [int(line[1]) for line in lines] == [sample.rss for sample in monitor.samples]
    assert f"{len(monitor.samples)} samples, peak {monitor.peak:,}" in repr(monitor)


def test_a_monitor_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    monitor = watched()
    axes = monitor.plot(tmp_path / "rss.png")
    assert (tmp_path / "rss.png").read_bytes().startswith(b"\x89PNG")
    assert [line.get_label() for line in axes.get_lines()] == ["rss", "live", "cached", "committed"]
    assert max(axes.get_lines()[0].get_ydata()) * MIB == pytest.approx(monitor.peak)


def test_a_monitor_starts_once_and_stops_as_often_as_one_likes() -> None:
    monitor = hakmem.RssMonitor(60)
    monitor.stop()
    assert monitor.peak == 0
    assert monitor.samples == []
    assert "none" in monitor.report()
    monitor.start()
    with pytest.raises(RuntimeError, match="started before"):
        monitor.start()
    monitor.stop()
    monitor.stop()
    assert len(monitor.samples) == 2
    for interval in (0, -1, float("nan"), float("inf"), 1e300):
        with pytest.raises(ValueError, match="above 0"):
            hakmem.RssMonitor(interval)


def test_a_monitor_goes_on_after_a_sample_that_failed_and_says_so_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = hakmem.RssMonitor(0.005).start()
    with monkeypatch.context() as broken:
        broken.setattr(hakmem, "_rss", lambda: 1 // 0)
        while monitor._failure is None:
            time.sleep(0.005)
    until = len(monitor.samples) + 2
    while len(monitor.samples) < until:
        time.sleep(0.005)
    with pytest.raises(ZeroDivisionError):
        monitor.stop()
    monitor.stop()
