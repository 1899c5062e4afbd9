"""Any sequence of calls from Python, bad ones among them, does to blocks and counts what a model of it says."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections import Counter
from typing import Any, Callable, Optional

import pytest

import hakmem

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

MIB = 1 << 20
CLASS_SIZES = [row.size for row in hakmem.class_table()]
NO_CLASS = (1 << 32) - 1
VIEWS_OUTLIVE = sys.version_info >= (3, 12)  # before, a closed Buffer keeps its memory until it is gone

sizes = st.one_of(
    st.integers(0, 1024),
    st.integers(0, 40_000),
    st.integers(0, MIB),
    st.integers(MIB, 6 * MIB),
    st.builds(lambda size, off: size + off, st.sampled_from(CLASS_SIZES), st.sampled_from([-1, 0, 1])),
)
picks = st.integers(0, 1 << 16)
sites = st.sampled_from([0, 1, 77, (1 << 64) - 1])
calls: dict[str, Callable[[int], Any]] = {
    "malloc": hakmem.malloc,
    "calloc, count": lambda size: hakmem.calloc(size, 1),
    "calloc, size": lambda size: hakmem.calloc(1, size),
    "aligned_alloc": lambda size: hakmem.aligned_alloc(64, size),
    "alloc_at": lambda size: hakmem.alloc_at(size, 1),
    "realloc": lambda size: hakmem.realloc(None, size),
    "Buffer": hakmem.Buffer,
}
pointer_calls: dict[str, Callable[[int], Any]] = {
    "free": hakmem.free,
    "free_at": lambda pointer: hakmem.free_at(pointer, 1),
    "usable_size": hakmem.usable_size,
    "realloc": lambda pointer: hakmem.realloc(pointer, 100),
}


def refuses(errors: Any, call: Callable[..., Any], *arguments: Any) -> None:
    """The call raises one of these; nothing of it is kept, as a traceback would keep a Buffer."""
    try:
        result = call(*arguments)
    except errors:
        return
    raise AssertionError(f"{call}{arguments!r} returned {result!r}")


class Held:
    """What the model knows of a Buffer."""

    def __init__(self, buffer: hakmem.Buffer) -> None:
        self.buffer: Optional[hakmem.Buffer] = buffer
        self.view: Optional[memoryview] = None
        self.data = bytearray(bytes(buffer))
        self.owner = hakmem.owner_of(buffer.address)


class Calls(RuleBasedStateMachine):
    """The model: what each block holds, and what the counts have to be."""

    def __init__(self) -> None:
        super().__init__()
        gc.collect()
        self.live: list[tuple[int, bytes, Any]] = []  # address, what it begins with, its owner record
        self.held: list[Held] = []
        self.frees = 0
        self.stats = hakmem.memory_stats()
        self.by_class = [row.live_blocks for row in hakmem.class_table()]
        self.options = {name: hakmem.config[name] for name in ("purge_ms", "retain")}
        self.first_options = dict(self.options)

    # ---- blocks

    def enter(self, pointer: Optional[int], size: int, alignment: int = 8) -> None:
        assert isinstance(pointer, int)
        assert pointer % (16 if alignment <= 16 and size > 8 else alignment) == 0
        usable = hakmem.usable_size(pointer)
        owner = hakmem.owner_of(pointer + usable // 2)
        assert usable >= size
        assert (owner.base, owner.size, owner.state) == (pointer, usable, "live")
        assert all(pointer + usable <= base or base + of.size <= pointer for base, _, of in self.live), "blocks overlap"
        content = (f"{pointer}:{size};" * (size // 8 + 1))[:size].encode() if size < 65536 else b"%d" % pointer
        ctypes.memmove(pointer, content, len(content))
        ctypes.memset(pointer + usable - 1, 7, 1 if usable > len(content) else 0)
        self.live.append((pointer, content, owner))

    def take(self, pick: int) -> tuple[int, bytes, Any]:
        pointer, content, owner = self.live.pop(pick % len(self.live))
        assert ctypes.string_at(pointer, len(content)) == content
        return pointer, content, owner

    @rule(size=sizes)
    def malloc(self, size: int) -> None:
        self.enter(hakmem.malloc(size), size)

    @rule(size=sizes, site=sites)
    def alloc_at(self, size: int, site: int) -> None:
        self.enter(hakmem.alloc_at(size, site), size)

    @rule(count=st.integers(0, 3000), size=st.integers(0, 300))
    def calloc(self, count: int, size: int) -> None:
        pointer = hakmem.calloc(count, size)
        assert not any(ctypes.string_at(pointer, count * size))
        self.enter(pointer, count * size)

    @rule(power=st.integers(0, 22), size=sizes)
    def aligned_alloc(self, power: int, size: int) -> None:
        self.enter(hakmem.aligned_alloc(1 << power, size), size, 1 << power)

    @precondition(lambda self: self.live)
    @rule(pick=picks, size=sizes)
    def realloc(self, pick: int, size: int) -> None:
        pointer, content, _ = self.take(pick)
        moved = hakmem.realloc(pointer, size)
        if size == 0:
            self.frees += 1
            assert moved is None
            return
        assert moved
        assert ctypes.string_at(moved, min(size, len(content))) == content[:size]
        self.enter(moved, size)

    @precondition(lambda self: self.live)
    @rule(pick=picks, site=st.one_of(st.none(), sites), again=st.sampled_from([None, *pointer_calls]))
    def free(self, pick: int, site: Optional[int], again: Optional[str]) -> None:
        pointer, _, owner = self.take(pick)
        if site is None:
            hakmem.free(pointer)
        else:
            hakmem.free_at(pointer, site)
        self.frees += 1
        if again:
            refuses(hakmem.HakmemError, pointer_calls[again], pointer)
            refuses(hakmem.HakmemError, pointer_calls[again], pointer + owner.size // 2)

    @rule(count=st.integers(1, 200), size=st.integers(0, 5000), order=st.sampled_from([1, -1]))
    def many(self, count: int, size: int, order: int) -> None:
        pointers = [hakmem.malloc(size) for _ in range(count)]
        assert len(set(pointers)) == count
        for pointer in pointers[::order]:
            hakmem.free(pointer)
        self.frees += count

    # ---- bad calls

    @precondition(lambda self: self.live)
    @rule(pick=picks, offset=st.integers(1, 8 * MIB), call=st.sampled_from(list(pointer_calls)))
    def inside_a_block(self, pick: int, offset: int, call: str) -> None:
        pointer, _, owner = self.live[pick % len(self.live)]
        if offset % owner.size:
            inside = pointer + offset % owner.size
            refuses(hakmem.HakmemError, pointer_calls[call], inside)
            assert hakmem.owner_of(inside) == owner

    @rule(which=st.integers(0, 5), call=st.sampled_from(list(pointer_calls)))
    def foreign(self, which: int, call: str) -> None:
        elsewhere = ctypes.create_string_buffer(64)
        pointer = [ctypes.addressof(elsewhere), 1, 4096, 1 << 47, 1 << 63, (1 << 64) - 1][which]
        refuses(hakmem.HakmemError, pointer_calls[call], pointer)
        refuses(hakmem.HakmemError, hakmem.owner_of, pointer)

    @rule(call=st.sampled_from(list(pointer_calls)), pointer=st.sampled_from([-1, 1 << 64, 1.5, "1", b"1", [1]]))
    def no_pointer(self, call: str, pointer: Any) -> None:
        refuses(ValueError if isinstance(pointer, int) else TypeError, pointer_calls[call], pointer)

    @rule(call=st.sampled_from(list(calls)), size=st.one_of(st.integers(1 << 47, 1 << 70), st.integers(-(1 << 70), -1)))
    def sizes_that_there_are_not(self, call: str, size: int) -> None:
        refuses(ValueError if size < 0 else MemoryError, calls[call], size)

    @rule(call=st.sampled_from(list(calls)), size=st.sampled_from([None, 1.0, "8", b"8", (1,), 1j]))
    def no_size(self, call: str, size: Any) -> None:
        refuses(TypeError, calls[call], size)

    @rule(alignment=st.one_of(st.integers(-(1 << 65), 0), st.sampled_from([3, 6, 24, (1 << 64) - 1, 1 << 64])))
    def bad_alignment(self, alignment: int) -> None:
        refuses(ValueError, hakmem.aligned_alloc, alignment, 64)
        refuses(ValueError, hakmem.Buffer, 64, alignment)

    @rule(count=st.integers(1 << 33, (1 << 64) - 1), size=st.integers(1 << 33, (1 << 64) - 1))
    def calloc_beyond_all_numbers(self, count: int, size: int) -> None:
        refuses(MemoryError, hakmem.calloc, count, size)

    # ---- buffers

    @rule(size=st.one_of(st.integers(0, 200), st.integers(0, 300_000)), power=st.integers(0, 14))
    def buffer(self, size: int, power: int) -> None:
        held = Held(hakmem.Buffer(size, 1 << power))
        assert held.buffer is not None
        assert len(held.buffer) == size
        assert held.buffer.address % (1 << power) == 0
        self.held.append(held)

    @precondition(lambda self: self.held)
    @rule(pick=picks, start=st.integers(0, 300_000), data=st.binary(max_size=50))
    def buffer_write(self, pick: int, start: int, data: bytes) -> None:
        held = self.held[pick % len(self.held)]
        start %= len(held.data) + 1
        data = data[: len(held.data) - start]
        if held.buffer is not None and not held.buffer.closed:
            held.buffer[start : start + len(data)] = data
        elif held.view is not None:
            held.view[start : start + len(data)] = data
        else:
            return
        held.data[start : start + len(data)] = data

    @precondition(lambda self: self.held)
    @rule(pick=picks, whole=st.booleans())
    def buffer_view(self, pick: int, whole: bool) -> None:
        held = self.held[pick % len(self.held)]
        if held.buffer is None:
            return
        if held.buffer.closed:
            for call in (held.buffer.view, held.buffer.__len__, lambda: held.buffer[0], lambda: held.buffer.address):
                refuses(ValueError, call)
        else:
            held.view = held.buffer.view() if whole else held.buffer[:]

    @precondition(lambda self: self.held)
    @rule(pick=picks, what=st.sampled_from(["close", "del", "view"]))
    def buffer_end(self, pick: int, what: str) -> None:
        held = self.held[pick % len(self.held)]
        if what == "view":
            held.view = None
        elif what == "del":
            held.buffer = None
        elif held.buffer is not None:
            held.buffer.close()
            assert held.buffer.closed
        closed = held.buffer is None or (VIEWS_OUTLIVE and held.buffer.closed)
        if closed and held.view is None:
            self.held.remove(held)

    # ---- options, trims, peaks

    @rule(name=st.sampled_from(["purge_ms", "retain"]), value=st.integers(0, 3_600_000), as_text=st.booleans())
    def set_option(self, name: str, value: int, as_text: bool) -> None:
        hakmem.config[name] = str(value) if as_text else value
        self.options[name] = value

    @rule(value=st.sampled_from([-1, 1 << 41, 1 << 64, -(1 << 70), 1.5, None, "", "1e3", "12 MB", "9" * 30, b"1", [1]]))
    def bad_value(self, value: Any) -> None:
        for name in self.options:
            refuses((ValueError, TypeError), hakmem.config.__setitem__, name, value)

    @rule(name=st.sampled_from(["enable_tls", "reserve", "huge_pages"]), value=st.sampled_from([0, 1]))
    def too_late(self, name: str, value: int) -> None:
        refuses(ValueError, hakmem.config.__setitem__, name, value)

    @rule(name=st.text(max_size=8))
    def no_option(self, name: str) -> None:
        if name not in hakmem.config:
            refuses(KeyError, hakmem.config.__setitem__, name, 1)
            refuses(KeyError, hakmem.config.__getitem__, name)

    @rule()
    def trim(self) -> None:
        assert hakmem.trim() >= 0
        stats = hakmem.memory_stats()
        assert stats["kept_whale_bytes"] == stats["free_dirty_bytes"] == 0

    @rule()
    def reset_peaks(self) -> None:
        hakmem.reset_peak_memory_stats()
        stats = hakmem.memory_stats()
        assert stats["peak_in_use_bytes"] == stats["in_use_bytes"]
        assert hakmem.default_memory_pool().bytes_allocated() == stats["live_bytes"]

    # ---- what holds after each call

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        owners = [owner for _, _, owner in self.live] + [held.owner for held in self.held]
        stats = hakmem.memory_stats()
        grown = {name: stats[name] - self.stats[name] for name in stats}
        assert grown["live_blocks"] == len(owners)
        assert grown["live_bytes"] == sum(owner.size for owner in owners)
        assert grown["allocs"] - grown["frees"] == len(owners)
        assert grown["frees"] >= self.frees
        wanted = Counter(owner.class_ for owner in owners)
        got = [row.live_blocks - before for row, before in zip(hakmem.class_table(), self.by_class)]
        assert got == [wanted[index] for index in range(len(got))]
        assert grown["large_blocks"] + grown["whale_blocks"] == wanted[NO_CLASS]
        assert stats["peak_in_use_bytes"] >= stats["in_use_bytes"]

    @invariant()
    def buffers_hold_what_was_written(self) -> None:
        for held in self.held:
            if held.view is not None:
                assert held.view == held.data
            elif held.buffer is not None and not held.buffer.closed:
                assert bytes(held.buffer) == held.data

    @invariant()
    def options_are_what_was_set(self) -> None:
        assert {name: hakmem.config[name] for name in self.options} == self.options

    def teardown(self) -> None:
        while self.live:
            hakmem.free(self.take(0)[0])
        self.held.clear()
        for name, value in self.first_options.items():
            hakmem.config[name] = value
        stats = hakmem.memory_stats()
        assert stats["live_blocks"] == self.stats["live_blocks"]
        assert stats["live_bytes"] == self.stats["live_bytes"]


COMMON: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def test_calls_do_what_the_model_says() -> None:
    run_state_machine_as_test(
        Calls, settings=settings(max_examples=40, stateful_step_count=30, derandomize=True, **COMMON)
    )


def test_the_model_notices_what_it_is_there_for() -> None:
    model = Calls()
    model.malloc(100)
    model.counts_are_those_of_the_model()
    lost = hakmem.malloc(50)
    with pytest.raises(AssertionError):
        model.counts_are_those_of_the_model()
    hakmem.free(lost)
    model.counts_are_those_of_the_model()
    hakmem.config.retain += 1
    with pytest.raises(AssertionError):
        model.options_are_what_was_set()
    pointer = model.live[0][0]
    ctypes.memset(pointer + 50, 0, 1)
    with pytest.raises(AssertionError):
        model.take(0)
    hakmem.free(pointer)
    model.teardown()


@pytest.mark.soak
def test_many_calls_do_what_the_model_says() -> None:
    run_state_machine_as_test(Calls, settings=settings(max_examples=4000, stateful_step_count=60, **COMMON))
