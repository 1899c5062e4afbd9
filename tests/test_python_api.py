"""Every public name of hakmem.py does what its docstring says, and mistakes raise instead of aborting."""

from __future__ import annotations

import copy
import ctypes
import doctest
import json
import os
import pickle
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tabulate
from _helpers import ROOT, library, succeed
from _helpers import run as run_it

import build
import hakmem

MIB = 1 << 20
ALIGNMENTS = [1 << power for power in range(27)]


def contents(pointer, size):
    return ctypes.string_at(pointer, size)


def fill(pointer, byte, size):
    ctypes.memset(pointer, byte, size)


def sizes_of_every_tier():
    """A size in the middle of each tier."""
    return [(row.name, row.min_size + 1 if row.name == "whale" else row.max_size - 1) for row in hakmem.tier_table()]


# ---- completeness


@pytest.mark.parametrize("name", hakmem.__all__)
def test_every_public_name_has_a_test_and_a_docstring(name):
    tests = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    assert any(re.search(rf"hakmem\.{name}\b", text) for text in tests)
    thing = getattr(hakmem, name)
    assert thing.__doc__
    for method, value in vars(type(thing) if name == "config" else thing).items() if isinstance(thing, type) else ():
        if not method.startswith("_") and (callable(value) or isinstance(value, property)):
            assert value.__doc__, method
            assert any(re.search(rf"\.{method}\b", text) for text in tests), method


def test_a_value_as_c_has_it_becomes_one_of_python():
    options = hakmem.config.options
    assert (options["ace"].typed(2), options["enable_tls"].typed(1), options["purge_ms"].typed(7)) == ("on", True, 7)


def test_public_names_are_all_that_the_module_defines():
    defined = {
        name
        for name, value in vars(hakmem).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == "hakmem"
    }
    assert defined == set(hakmem.__all__)
    assert hakmem.__all__ == sorted(hakmem.__all__)


def test_every_export_is_bound_or_has_a_checked_twin(run, root, library):
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is missing")
    exported = run("nm", "-D", "--defined-only", library).stdout.split()
    exports = {name for name in exported if name.startswith("hak_")}
    bound = set(re.findall(r'_bind\("(hak_\w+)"', (root / "hakmem.py").read_text(encoding="utf-8")))
    aborting = {"hak_free", "hak_realloc", "hak_usable_size"}  # bound in their checked form
    for_c_programs = {"hak_stat", *(f"hak_lookup_by_{way}" for way in ("address", "registry", "scan"))}
    assert exports == bound | aborting | for_c_programs | {"hak_about"}


def test_every_export_is_called_by_a_test(run, root, library):
    if shutil.which("nm") is None or shutil.which("c++filt") is None:
        pytest.skip("nm and c++filt (binutils) are missing")
    tests = root / "tests"
    texts = [path.read_text(encoding="utf-8") for path in [*tests.glob("test_*.py"), *tests.glob("c/*")]]
    for name in run("nm", "-D", "--defined-only", library).stdout.split()[2::3]:
        spoken = run("c++filt", name).stdout.strip() if name.startswith("_Z") else name
        # what Python binds is called through the function of that name, whose test another test asks for
        if not re.search(rf'_bind\("{name}"', (root / "hakmem.py").read_text(encoding="utf-8")):
            call = re.escape(spoken.split("(")[0]) if name.startswith("_Z") else rf"{name}\b"
            assert any(re.search(call, text) for text in texts), spoken


def test_each_binding_stands_below_its_prototype(root):
    lines = (root / "hakmem.py").read_text(encoding="utf-8").splitlines()
    bindings = [(index, name) for index, line in enumerate(lines) for name in re.findall(r'= _bind\("(hak_\w+)"', line)]
    assert bindings
    for index, name in bindings:
        assert re.match(rf"# [\w *]+\b{name}\(.*\);$", lines[index - 1]), name


def test_the_session_in_the_docstring_is_true():
    done = doctest.testmod(hakmem)
    assert done.attempted >= 5
    assert done.failed == 0


# ---- blocks


@pytest.mark.parametrize("size", [0, 1, 8, 9, 100, 1024, 1025, 32768, 32769, MIB, MIB + 1, 70 * MIB])
def test_malloc_gives_usable_memory_and_free_takes_it_back(size):
    before = hakmem.memory_stats()["live_blocks"]
    pointer = hakmem.malloc(size)
    usable = hakmem.usable_size(pointer)
    assert usable >= size
    assert pointer % (16 if size > 8 else 8) == 0
    fill(pointer, 0xA5, usable)
    assert contents(pointer, min(usable, 4096)) == b"\xa5" * min(usable, 4096)
    assert hakmem.memory_stats()["live_blocks"] == before + 1
    hakmem.free(pointer)
    assert hakmem.memory_stats()["live_blocks"] == before


@pytest.mark.parametrize(("count", "size"), [(0, 8), (1, 1), (3, 5), (1000, 33), (3, MIB)])
def test_calloc_is_zero_even_in_a_used_block(count, size):
    used = hakmem.malloc(count * size)
    fill(used, 0xFF, hakmem.usable_size(used))
    hakmem.free(used)
    pointer = hakmem.calloc(count, size)
    assert contents(pointer, count * size) == bytes(count * size)
    hakmem.free(pointer)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_aligned_alloc_takes_any_power_of_two(alignment):
    pointers = [hakmem.aligned_alloc(alignment, size) for size in (1, 100, 5000)]
    assert all(pointer % alignment == 0 for pointer in pointers)
    for pointer in pointers:
        hakmem.free(pointer)


@pytest.mark.parametrize("alignment", [0, 3, 24, (1 << 20) + 1, -16])
def test_aligned_alloc_refuses_other_alignments(alignment):
    with pytest.raises(ValueError, match="alignment"):
        hakmem.aligned_alloc(alignment, 100)


def test_realloc_keeps_what_was_written_while_it_grows_and_shrinks():
    pointer = hakmem.realloc(None, 10)
    fill(pointer, 7, 10)
    for size in (11, 500, 5000, 200_000, 3 * MIB, 70 * MIB, 4000, 10):
        pointer = hakmem.realloc(pointer, size)
        assert contents(pointer, 10) == b"\7" * 10
        assert hakmem.usable_size(pointer) >= size
    assert hakmem.realloc(pointer, 0) is None
    with pytest.raises(hakmem.HakmemError):
        hakmem.free(pointer)


def test_realloc_that_cannot_be_leaves_the_block_alone():
    pointer = hakmem.malloc(100)
    fill(pointer, 9, 100)
    with pytest.raises(MemoryError):
        hakmem.realloc(pointer, 1 << 62)
    assert contents(pointer, 100) == b"\t" * 100
    hakmem.free(pointer)


def test_none_is_accepted_where_c_accepts_null():
    hakmem.free(None)
    assert hakmem.usable_size(None) == 0
    hakmem.free_at(None, 1)


ALLOCATORS = {
    "malloc": hakmem.malloc,
    "calloc": lambda size: hakmem.calloc(1, size),
    "aligned_alloc": lambda size: hakmem.aligned_alloc(64, size),
    "realloc": lambda size: hakmem.realloc(None, size),
    "alloc_at": lambda size: hakmem.alloc_at(size, 1),
}


@pytest.mark.parametrize("allocate", ALLOCATORS.values(), ids=ALLOCATORS)
def test_impossible_sizes_raise(allocate):
    for size, error in [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (None, TypeError)]:
        with pytest.raises(error):
            allocate(size)
    for size in (1 << 62, (1 << 63) - 1, (1 << 64) - 1, 1 << 64, 1 << 100):
        with pytest.raises(MemoryError):
            allocate(size)


def test_calloc_that_overflows_is_out_of_memory():
    with pytest.raises(MemoryError):
        hakmem.calloc(1 << 32, 1 << 32)
    with pytest.raises(MemoryError):
        hakmem.calloc(3, (1 << 64) // 2)


def foreign_address():
    foreign_address.kept = ctypes.create_string_buffer(64)
    return ctypes.addressof(foreign_address.kept)


def freed_address(size):
    pointer = hakmem.malloc(size)
    hakmem.free(pointer)
    return pointer


def freed_below_others():
    pointers = [hakmem.malloc(100) for _ in range(3)]
    for pointer in pointers:
        hakmem.free(pointer)
    return pointers[0]


BAD_POINTERS = {
    "foreign": foreign_address,
    "wild": lambda: 0x10,
    "in a code page": lambda: ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p).value,
    "not canonical": lambda: 0xDEAD_BEEF_DEAD_BEEF,
    "last byte": lambda: (1 << 64) - 1,
    **{f"already free, {name}": lambda size=size: freed_address(size) for name, size in sizes_of_every_tier()},
    "already free, on top of others": freed_below_others,
}
TAKERS = {
    "free": hakmem.free,
    "realloc": lambda pointer: hakmem.realloc(pointer, 200),
    "usable_size": hakmem.usable_size,
    "free_at": lambda pointer: hakmem.free_at(pointer, 3),
}


@pytest.mark.parametrize("bad", BAD_POINTERS)
@pytest.mark.parametrize("take", TAKERS)
def test_bad_pointers_raise_and_change_nothing(bad, take):
    pointer = BAD_POINTERS[bad]()
    before = hakmem.memory_stats()
    with pytest.raises(hakmem.HakmemError, match=hex(pointer)) as caught:
        TAKERS[take](pointer)
    assert "already free" in str(caught.value) if "already" in bad else "not a block" in str(caught.value)
    after = hakmem.memory_stats()
    assert (after["live_blocks"], after["live_bytes"]) == (before["live_blocks"], before["live_bytes"])


@pytest.mark.parametrize(("tier", "size"), sizes_of_every_tier())
@pytest.mark.parametrize("take", TAKERS)
def test_pointers_into_a_block_raise(tier, size, take):
    pointer = hakmem.malloc(size)
    for offset in (1, 8, size // 2, size - 1):
        with pytest.raises(hakmem.HakmemError):
            TAKERS[take](pointer + offset)
    hakmem.free(pointer)


@pytest.mark.parametrize("take", TAKERS)
def test_what_is_no_address_raises(take):
    for pointer, error in [(-8, ValueError), (1 << 64, ValueError), (1.0, TypeError), ("0x10", TypeError)]:
        with pytest.raises(error):
            TAKERS[take](pointer)


def test_alloc_at_and_free_at_take_any_site():
    for site in (0, 1, 0xFFFF, (1 << 64) - 1):
        pointer = hakmem.alloc_at(100, site)
        assert hakmem.usable_size(pointer) >= 100
        hakmem.free_at(pointer, site)
    for site in (-1, 1 << 64):
        with pytest.raises(ValueError, match="site"):
            hakmem.alloc_at(100, site)


def test_blocks_may_be_freed_by_another_thread():
    pointers = [hakmem.malloc(size) for size in (24, 5000, 100_000) * 200]
    before = hakmem.memory_stats()["live_blocks"]
    thread = threading.Thread(target=lambda: [hakmem.free(pointer) for pointer in pointers])
    thread.start()
    thread.join()
    assert hakmem.memory_stats()["live_blocks"] == before - len(pointers)


def test_trim_gives_back_what_was_freed():
    start = hakmem.memory_stats()
    pointers = [hakmem.malloc(100_000) for _ in range(200)]
    for pointer in pointers:
        fill(pointer, 1, 100_000)
    for pointer in pointers:
        hakmem.free(pointer)
    freed = hakmem.memory_stats()
    given_back = hakmem.trim()
    after = hakmem.memory_stats()
    assert isinstance(given_back, int)
    assert given_back >= freed["free_dirty_bytes"]
    assert after["free_dirty_bytes"] == after["cached_bytes"] == 0
    # some of it may have grown old enough to be given back before
    assert after["purged_bytes"] - start["purged_bytes"] >= 200 * 100_000


@pytest.mark.parametrize(("tier", "size"), sizes_of_every_tier())
def test_owner_of_finds_the_block_around_any_address_in_it(tier, size):
    pointer = hakmem.malloc(size)
    for offset in (0, 1, size - 1):
        owner = hakmem.owner_of(pointer + offset)
        assert (owner.base, owner.tier, owner.state) == (pointer, tier, "live")
        assert owner.size >= size
    hakmem.free(pointer)


def test_owner_of_a_foreign_address_raises():
    for pointer in (foreign_address(), 0x10, (1 << 64) - 1):
        with pytest.raises(hakmem.HakmemError, match="not a block"):
            hakmem.owner_of(pointer)


# ---- statistics


def test_class_table_has_the_classes_of_the_specification_in_order():
    rows = hakmem.class_table()
    sizes = [row.size for row in rows]
    assert sizes == sorted(set(sizes))
    assert {8 << power for power in range(18)} <= set(sizes)
    assert [row.index for row in rows] == list(range(len(rows)))
    bounds = {row.name: (row.min_size, row.max_size) for row in hakmem.tier_table()}
    for row in rows:
        low, high = bounds[row.tier]
        assert low <= row.size <= high
        assert row.blocks_per_slab * row.size <= row.slab_bytes


def test_a_block_of_a_class_is_of_that_size_and_is_counted_there():
    for index, row in enumerate(hakmem.class_table()):
        pointer = hakmem.malloc(row.size)
        assert hakmem.usable_size(pointer) == row.size
        after = hakmem.class_table()[index]
        assert after.allocs == row.allocs + 1
        assert after.live_blocks == row.live_blocks + 1
        hakmem.free(pointer)
        assert hakmem.class_table()[index].frees == row.frees + 1


def test_tier_table_covers_all_sizes_without_a_gap():
    rows = hakmem.tier_table()
    assert [row.name for row in rows] == ["tiny", "l2", "l25", "whale"]
    assert rows[0].min_size <= 1
    assert [row.max_size for row in rows[:3]] == [1024, 32 * 1024, MIB]
    for lower, upper in zip(rows, rows[1:]):
        assert upper.min_size == lower.max_size + 1


def test_memory_stats_has_torchs_keys_for_the_whole_and_every_tier():
    stats = hakmem.memory_stats()
    for part in ["all", *[row.name for row in hakmem.tier_table()]]:
        assert isinstance(stats[f"allocated_bytes.{part}.current"], int)
        assert isinstance(stats[f"allocation.{part}.allocated"], int)
    assert stats["active_bytes.all.peak"] >= stats["active_bytes.all.current"] > 0
    assert stats["reserved_bytes.all.current"] == stats["committed_bytes"]


@pytest.mark.parametrize(("tier", "size"), sizes_of_every_tier())
def test_memory_stats_follows_each_tier(tier, size):
    before = hakmem.memory_stats()
    pointers = [hakmem.malloc(size) for _ in range(5)]
    usable = sum(map(hakmem.usable_size, pointers))
    during = hakmem.memory_stats()
    for pointer in pointers:
        hakmem.free(pointer)
    after = hakmem.memory_stats()
    for part in (tier, "all"):
        assert during[f"allocated_bytes.{part}.current"] - before[f"allocated_bytes.{part}.current"] == usable
        assert after[f"allocated_bytes.{part}.current"] == before[f"allocated_bytes.{part}.current"]
        assert during[f"allocation.{part}.allocated"] - before[f"allocation.{part}.allocated"] == 5
    assert after["active_bytes.all.peak"] >= during["active_bytes.all.current"] >= usable


def check_laws(stats):
    terms = "live cached transit slab_free slab_tail free_dirty free_clean kept_whale metadata".split()
    assert stats["committed_bytes"] == sum(stats[f"{term}_bytes"] for term in terms)
    assert stats["allocs"] - stats["frees"] == stats["live_blocks"]
    assert stats["cache_hits"] + stats["cache_misses"] + stats["allocation.whale.allocated"] == stats["allocs"]
    tiers = [row.name for row in hakmem.tier_table()]
    assert stats["live_bytes"] == sum(stats[f"allocated_bytes.{tier}.current"] for tier in tiers)
    assert stats["allocs"] == sum(stats[f"allocation.{tier}.allocated"] for tier in tiers)


def test_the_laws_hold_while_blocks_of_all_sizes_come_and_go():
    check_laws(hakmem.memory_stats())
    pointers = []
    for size in [1, 16, 100, 1000, 1025, 5000, 32_768, 40_000, 300_000, MIB, 2 * MIB, 65 * MIB] * 3:
        pointers.append(hakmem.malloc(size))
        check_laws(hakmem.memory_stats())
    for pointer in pointers[::2] + pointers[1::2]:
        hakmem.free(pointer)
        check_laws(hakmem.memory_stats())
    hakmem.trim()
    check_laws(hakmem.memory_stats())


def test_structures_are_those_of_c():
    for layout in hakmem._LAYOUTS.values():
        for field in layout.fields:
            assert field.kind in hakmem._KINDS
            assert field.help or field.kind == "z" or layout in (hakmem._OPTION, hakmem._OWNER, hakmem._SEGMENT)
        assert len(layout.structure._fields_) == len(layout.fields)
    known = {"stats", "class", "tier", "heap", "lock", "segment", "option", "owner", "shard", "big", "site", "rule"}
    assert known | {"policy", "decision", "setting", "mapping"} == set(hakmem._LAYOUTS)


# ---- reports


def test_report_shows_classes_tiers_and_counters():
    data = json.loads(hakmem.report("classes", fmt="json"))["tables"]["classes"]
    assert [row["size"] for row in data] == [row.size for row in hakmem.class_table()]
    summary = hakmem.report()
    for name in ["tiny", "l2", "l25", "whale", "committed_bytes", "live_bytes", "process_rss"]:
        assert name in summary
    assert " KiB" in hakmem.report("classes")


def test_report_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"summary, pools, classes, threads"):
        hakmem.report("poetry")
    with pytest.raises(ValueError, match=r"json, .*simple"):
        hakmem.report("classes", fmt="poetry")
    assert "simple" in tabulate.tabulate_formats


# ---- options

OPTIONS = hakmem.config.options
CHANGEABLE = [name for name, option in OPTIONS.items() if option.when == "any"]
START_ONLY = [name for name, option in OPTIONS.items() if option.when == "start"]
NUMBERS = [name for name, option in OPTIONS.items() if option.type != "text"]
TEXTS = [name for name, option in OPTIONS.items() if option.type == "text"]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_described(name):
    option = hakmem.config.option(name)
    assert isinstance(option, hakmem.Option)
    assert option.env == "HAKMEM_" + name.upper()
    assert option.type in ("bool", "int", "bytes", "text", "mode")
    assert option.when in ("start", "any")
    assert option.help
    assert option.min <= (len(option.default) if option.type == "text" else option.default) <= option.max
    assert name in repr(option)
    assert option.env in hakmem.config.table()


@pytest.mark.parametrize("name", CHANGEABLE)
def test_an_option_keeps_what_it_is_set_to(name):
    option, before = OPTIONS[name], hakmem.config[name]
    try:
        for value in (option.min, option.max, option.default):
            setattr(hakmem.config, name, value)
            assert getattr(hakmem.config, name) == hakmem.config[name] == option.value == value
            assert type(option.value) is (bool if option.type == "bool" else int)
        hakmem.config[name] = option.min
        assert option.value == option.min
    finally:
        option.value = before


@pytest.mark.parametrize("name", NUMBERS)
def test_an_option_refuses_what_is_out_of_bounds_or_no_number(name):
    option, before = OPTIONS[name], hakmem.config[name]
    for value in (option.min - 1, option.max + 1, 1 << 70, "much", 1.5, None):
        with pytest.raises(ValueError, match=f"{name} = .*allowed"):
            setattr(hakmem.config, name, value)
        with pytest.raises(hakmem.HakmemError):
            hakmem.config[name] = value
    assert hakmem.config[name] == before


@pytest.mark.parametrize("name", NUMBERS)
def test_a_value_can_be_checked_without_being_set(name):
    option = hakmem.config.option(name)
    before = option.value
    assert isinstance(option, hakmem.Option)
    option.check(option.max)
    with pytest.raises(ValueError, match="allowed is"):
        option.check(option.max + 1)
    assert option.value == before


@pytest.mark.parametrize("name", START_ONLY)
def test_an_option_of_the_start_says_how_to_set_it(name):
    with pytest.raises(ValueError, match=OPTIONS[name].env):
        hakmem.config[name] = OPTIONS[name].default


@pytest.mark.parametrize("name", TEXTS)
def test_an_option_that_is_a_text_has_a_length_within_bounds(name, python, tmp_path):
    option = hakmem.config.option(name)
    assert option.value == option.default == ""
    assert option.check("x" * option.max) == option.parse("x" * option.max) == option.max
    for value in ("x" * (option.max + 1), "\N{EURO SIGN}" * (option.max // 2), 5, None):
        with pytest.raises(ValueError, match=f"allowed is a text of at most {option.max} bytes"):
            option.check(value)
    show = f"import hakmem; print(hakmem.config[{name!r}])"
    done = python(show, cwd=tmp_path, **{option.env: "1:none;2:none"})  # of one it is the name of a file
    assert (done.stdout, done.stderr) == ("1:none;2:none\n", "")
    done = python(show, **{option.env: "x" * (option.max + 1)})
    assert done.stdout == "\n"
    assert done.stderr.endswith(f": must be a text from 0 to {option.max} bytes; using 0\n")


@pytest.mark.parametrize("name", NUMBERS)
def test_an_option_is_read_from_the_environment(name, python):
    option = OPTIONS[name]
    values = {int(option.default), int(option.min) if option.min == option.max - 1 else int(option.default) // 2}
    for value in (value for value in values if option.min <= value <= option.max):
        done = python(f"import hakmem; print(int(hakmem.config[{name!r}]))", **{option.env: value})
        assert (done.stdout.strip(), done.stderr) == (str(value), "")


def test_an_option_takes_a_text_as_the_environment_does():
    before = hakmem.config.retain
    try:
        hakmem.config.retain = "48M"
        assert hakmem.config.retain == 48 << 20 == hakmem.config.option("retain").parse("48MiB")
        for text in ("48 parsecs", "", "-1", "9999999T", "²"):
            with pytest.raises(ValueError, match=r"retain = .*allowed is 0 to"):
                hakmem.config.retain = text
    finally:
        hakmem.config.retain = before
    assert hakmem.config.option("enable_tls").parse("off") == 0


def test_config_may_be_copied_and_asked_for_anything():
    assert copy.copy(hakmem.config) is copy.deepcopy(hakmem.config) is hakmem.config
    assert pickle.loads(pickle.dumps(hakmem.config)) is hakmem.config
    assert 5 not in hakmem.config


def test_config_is_a_mapping_of_all_options():
    assert isinstance(hakmem.config, hakmem.Config)
    assert list(hakmem.config) == list(OPTIONS)
    assert dict(hakmem.config) == {name: option.value for name, option in OPTIONS.items()}
    assert len(hakmem.config) == len(OPTIONS) == len(hakmem.Config())
    assert set(OPTIONS) <= set(dir(hakmem.config))
    assert f"{len(OPTIONS)} options" in repr(hakmem.config)


def test_an_unknown_option_is_refused_with_the_nearest():
    attempts = [
        lambda: hakmem.config["purge_mss"],
        lambda: hakmem.config.purge_mss,
        lambda: hakmem.config.__setitem__("purge_mss", 1),
        lambda: setattr(hakmem.config, "purge_mss", 1),
    ]
    for attempt in attempts:
        with pytest.raises(hakmem.UnknownOptionError, match=r"^there is no option 'purge_mss'.*'purge_ms'"):
            attempt()
    assert issubclass(hakmem.UnknownOptionError, (KeyError, AttributeError, ValueError))
    assert "purge_mss" not in hakmem.config
    assert hakmem.config.get("purge_mss") is None
    assert not hasattr(hakmem.config, "purge_mss")


# ---- the loader

ABOUT = """
#include <stdint.h>
#include <stddef.h>
struct field { uint32_t offset, size; };
struct record { const char *name, *kinds, *texts; const struct field *fields; uint32_t nfields, size, texts_len, x; };
struct about { uint32_t abi, size; const char *version, *variant; const struct record *records; uint32_t nrecords, x; };
static const char texts[] = "allocs\\0\\0\\0\\0frees\\0\\0\\0";
static const struct field fields[] = {{OFFSET, 8}, {8, 8}};
static const struct record records[] = {{"stats", "QQ", texts, fields, 2, 16, sizeof texts, 0}};
static const struct about about = {ABI, sizeof about, "9.8.7", "release", records, 1, 0};
const struct about *hak_about(void) { return &about; }
"""


@pytest.fixture
def pretender(tmp_path):
    """A library that has nothing but hak_about."""

    def make(**macros):
        source, target = tmp_path / "pretender.c", tmp_path / "pretender.so"
        source.write_text(ABOUT, encoding="utf-8")
        defines = [f"-D{name}={value}" for name, value in macros.items()]
        subprocess.run([*build.find_compiler(), "-shared", "-fPIC", *defines, "-o", target, source], check=True)
        return target

    return make


def test_a_library_with_another_abi_is_refused_by_name(pretender, python):
    library = pretender(ABI=4711, OFFSET=0)
    done = python("import hakmem", HAKMEM_LIBRARY=library, check=False)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    for part in (str(library), "hakmem 9.8.7", "ABI 4711", hakmem.__version__, f"ABI {hakmem._ABI}"):
        assert part in error


def test_a_library_that_misdescribes_its_records_is_refused(pretender, python):
    library = pretender(ABI=hakmem._ABI, OFFSET=4)
    done = python("import hakmem", HAKMEM_LIBRARY=library, check=False)
    assert "ImportError" in done.stderr
    assert f"{library}: the layout of its record 'stats'" in done.stderr


def test_what_is_no_library_is_refused(tmp_path, python):
    (tmp_path / "text.so").write_text("not a library", encoding="utf-8")
    for path in (tmp_path / "text.so", tmp_path / "missing.so", "libm.so.6"):
        done = python("import hakmem", HAKMEM_LIBRARY=path, check=False)
        assert "ImportError: no hakmem library" in done.stderr
        assert str(path) in done.stderr


def test_a_library_may_be_named_by_a_relative_path(tmp_path, library, python):
    shutil.copy(library, tmp_path / "x.so")
    done = python("import hakmem; print(hakmem.mode().path)", cwd=tmp_path, HAKMEM_LIBRARY="./x.so")
    assert done.stdout.strip() == str(tmp_path / "x.so")


@pytest.fixture
def copied(tmp_path, root):
    """hakmem.py and its source in a directory without a library."""
    place = tmp_path / "copied"
    place.mkdir()
    for name in ("hakmem.py", "build.py", "_hakmem_backend.c"):
        shutil.copy(root / name, place)
    return place


def imported(python, place, **environment):
    settings = {"HAKMEM_LIBRARY": None, "XDG_CACHE_HOME": place / "cache", "PYTHONPATH": None, **environment}
    return python("import hakmem; print(hakmem.mode().path)", cwd=place, check=False, **settings)


def test_without_library_and_compiler_the_error_says_what_was_tried_and_what_to_install(copied, python):
    done = imported(python, copied, PATH="/nonexistent", CC=None)
    assert "ImportError: no hakmem library" in done.stderr
    assert str(copied / "_hakmem_backend.so") in done.stderr
    assert "apt-get install gcc" in done.stderr


def test_a_lone_hakmem_py_says_what_is_missing(copied, python):
    (copied / "build.py").unlink()
    assert "pip install hakmem" in imported(python, copied).stderr


def test_a_build_py_of_somebody_else_is_not_run(copied, python):
    (copied / "build.py").write_text("raise SystemExit('ran a stranger')", encoding="utf-8")
    done = imported(python, copied)
    assert "ImportError" in done.stderr
    assert "stranger" not in done.stderr


@pytest.mark.usefixtures("quick_compiler")
def test_processes_that_start_together_compile_once(copied, python, root):
    log = copied / "compilations"
    compiler = copied / "cc"
    real = shlex.join(build.find_compiler())
    compiler.write_text(f'#!/bin/sh\necho compiled >>{log}\nsleep 1\nexec {real} "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    environment = {**os.environ, "XDG_CACHE_HOME": str(copied / "cache"), "CC": str(compiler)}
    environment.pop("HAKMEM_LIBRARY", None)
    command = [sys.executable, "-c", "import hakmem; hakmem.free(hakmem.malloc(9)); print(hakmem.mode().path)"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, cwd=copied, env=environment, **pipes) for _ in range(12)]
    results = [process.communicate(timeout=300) for process in started]
    assert {error for _, error in results} == {""}
    assert len({path for path, _ in results}) == 1
    assert log.read_text(encoding="utf-8").split() == ["compiled"]
    cache = copied / "cache" / "hakmem"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert Path(results[0][0].strip()).parent == cache
    assert [path.suffix for path in cache.iterdir() if not path.name.startswith(".")] == [".so"]
    assert not list(cache.glob(".*.new"))
    assert imported(python, copied, PATH="/nonexistent", CC=None).stdout == results[0][0]


def test_a_cache_that_others_can_write_to_is_refused(copied, python):
    cache = copied / "cache" / "hakmem"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    done = imported(python, copied)
    assert "ImportError" in done.stderr
    assert str(cache) in done.stderr
    cache.rmdir()
    elsewhere = copied / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    cache.symlink_to(elsewhere)
    assert str(cache) in imported(python, copied).stderr


@pytest.mark.usefixtures("quick_compiler")
def test_a_library_built_in_the_tree_is_never_older_than_its_source(copied, python, run):
    run(sys.executable, copied / "build.py")
    first = imported(python, copied)
    assert Path(first.stdout.strip()) == copied / "_hakmem_backend.so"
    before = (copied / "_hakmem_backend.so").stat().st_mtime_ns
    assert imported(python, copied, CC="no-such-compiler").stdout == first.stdout
    assert imported(python, copied, CC="gcc -O1").stdout == first.stdout
    assert (copied / "_hakmem_backend.so").stat().st_mtime_ns == before
    with open(copied / "_hakmem_backend.c", "a", encoding="utf-8") as source:
        source.write("\n/* changed */\n")
    assert imported(python, copied).stdout == first.stdout
    assert (copied / "_hakmem_backend.so").stat().st_mtime_ns > before


def test_mode_tells_that_the_library_serves_its_callers_only(library):
    assert isinstance(hakmem.mode(), hakmem.Mode)
    assert hakmem.mode().how == "loaded"
    assert Path(hakmem.mode().path).samefile(library)
    assert hakmem.mode().variant in build.VARIANTS


# ---- the command line


@pytest.fixture
def command(run):
    """python -m hakmem."""
    return lambda *arguments, **keywords: run(sys.executable, "-m", "hakmem", *arguments, **keywords)


def test_run_puts_the_program_on_hakmem_and_the_module_attaches(command):
    source = (
        "import ctypes, hakmem\n"
        "malloc = ctypes.CDLL(None).malloc\n"
        "malloc.restype = ctypes.c_void_p\n"
        "print(hakmem.mode().how, hakmem.mode().path, hakmem.owner_of(malloc(100)).tier)\n"
        "hakmem.free(malloc(100))\n"
        "print(hakmem.memory_stats()['allocs'] > 1000)\n"
    )
    done = command("run", "--", sys.executable, "-c", source)
    assert done.stdout.split() == ["preloaded", hakmem.mode().path, "tiny", "True"]
    assert done.stderr == ""


def test_run_passes_arguments_output_and_status(command):
    done = command("run", "--", "sh", "-c", 'echo "$0" "$@"; exit 7', "a b", "--variant", "c", check=False)
    assert (done.stdout, done.returncode) == ("a b --variant c\n", 7)


def test_run_prepends_to_ld_preload_and_names_itself_once(command):
    path = hakmem.mode().path
    show = ["run", "--", "sh", "-c", "echo $LD_PRELOAD"]
    assert command(*show).stdout.strip() == path
    other = "libm.so.6"
    assert command(*show, LD_PRELOAD=other).stdout.strip() == f"{path}:{other}"
    assert command(*show, LD_PRELOAD=f"{other} {path}").stdout.strip() == f"{path}:{other}"


def test_run_sets_options_and_leaves_pythonmalloc_alone_unless_asked(command):
    show = ["--", "sh", "-c", "echo $HAKMEM_PURGE_MS,$PYTHONMALLOC"]
    assert command("run", *show, PYTHONMALLOC=None).stdout == ",\n"
    assert command("run", "-o", "purge_ms=123", "--pythonmalloc", *show).stdout == "123,malloc\n"


def test_run_takes_a_variant(command):
    done = command(
        "run", "--variant", "debug", "--", sys.executable, "-c", "import hakmem; print(hakmem.mode().variant)"
    )
    assert done.stdout == "debug\n"


def test_run_starts_what_a_shim_stands_for(command, tmp_path):
    shims, tools = tmp_path / ".pyenv" / "shims", tmp_path / ".pyenv" / "bin"
    for directory, name, script in [
        (shims, "tool", "echo the shim ran"),
        (tools, "pyenv", f'test "$1 $2" = "which tool" && echo {shutil.which("env")}'),
    ]:
        directory.mkdir(parents=True)
        (directory / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (directory / name).chmod(0o755)
    assert "LD_PRELOAD=" in command("run", "--", shims / "tool", PATH=f"{tools}:{os.environ['PATH']}").stdout
    (tools / "pyenv").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert command("run", "--", shims / "tool", PATH=f"{tools}:{os.environ['PATH']}").stdout == "the shim ran\n"


def refusal(command, *arguments, status=125, **keywords):
    done = command("run", *arguments, check=False, **keywords)
    assert done.returncode == status
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hakmem: run: ")
    return line


def test_run_refuses_programs_that_would_ignore_it(command, tmp_path):
    source = tmp_path / "static.c"
    source.write_text("void _start(void) { for (;;) { } }", encoding="utf-8")
    static = tmp_path / "static"
    subprocess.run([*build.find_compiler(), "-static", "-nostdlib", "-o", static, source], check=True)
    assert "statically linked" in refusal(command, "--", static)
    for mode in (0o4755, 0o2755):
        program = tmp_path / f"mode{mode:o}"
        shutil.copy(shutil.which("env"), program)
        program.chmod(mode)
        assert "setuid, setgid" in refusal(command, "--", program)
    script = tmp_path / "script"
    script.write_text(f"#!{static} -x\n", encoding="utf-8")
    script.chmod(0o755)
    assert "statically linked" in refusal(command, "--", script)
    script.write_text("echo no first line", encoding="utf-8")
    assert "neither an ELF program nor a script" in refusal(command, "--", script)
    for first, reason in (
        ("#!", "leads to no program"),
        (f"#!{script}", "leads to no program"),
        ("\x7fELF", "cut off"),
    ):
        script.write_text(first, encoding="utf-8")
        assert reason in refusal(command, "--", script)


@pytest.mark.usefixtures("quick_compiler")
def test_run_refuses_what_it_cannot_do(command):
    assert "no program 'no-such-program'" in refusal(command, "--", "no-such-program", status=127)
    assert "no command" in refusal(command)
    assert "nearest is 'purge_ms'" in refusal(command, "-o", "purge=1", "--", "true")
    assert "option=value" in refusal(command, "-o", "purge_ms", "--", "true")
    for value in ("-1", "--1", "abc", "²", ""):
        assert "allowed is" in refusal(command, "-o", f"purge_ms={value}", "--", "true")
    assert "leaves malloc alone" in refusal(command, "--variant", "asan", "--", "true")
    library = build.build("ubsan", quiet=True)
    assert "ubsan leaves malloc alone" in refusal(command, "--", "true", HAKMEM_LIBRARY=library)
    assert "no variant 'fastest'" in refusal(command, "--variant", "fastest", "--", "true")


@pytest.mark.parametrize("name", ["with space", "with:colon"])
def test_run_refuses_a_library_path_that_ld_preload_cannot_name(command, tmp_path, library, name):
    place = tmp_path / name
    place.mkdir()
    shutil.copy(library, place / "lib.so")
    line = refusal(command, "--", "true", HAKMEM_LIBRARY=place / "lib.so")
    assert "HAKMEM_LIBRARY" in line
    assert str(place) in line


def test_run_refuses_a_library_that_the_loader_does_not_take(command, tmp_path, library):
    gone = tmp_path / "lib.so"
    shutil.copy(library, gone)
    source = "import os, sys, hakmem; os.unlink(sys.argv[1]); sys.exit(hakmem.main(['run', 'true']))"
    done = subprocess.run(
        [sys.executable, "-c", source, gone],
        env={**os.environ, "HAKMEM_LIBRARY": str(gone)},
        cwd=Path(hakmem.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert f"does not preload {gone}" in done.stderr


@pytest.mark.parametrize("arguments", [["path"], ["config"], ["report", "pools"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_quietly_and_a_full_disk_in_one_line(root, arguments, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    started = [sys.executable, "-m", "hakmem", *arguments]
    options = {"cwd": root, "env": environment, "stderr": subprocess.PIPE, "text": True}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(started, stdout=writer, check=False, **options)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(started, stdout=full, check=False, **options)
    assert done.returncode == 1
    assert re.fullmatch(rf"hakmem: {arguments[0]}: .*No space left.*\n", done.stderr)


def test_bench_passes_its_arguments_on(command):
    assert "allocator" in command("bench", "peers").stdout
    assert "--peer NAME=PATH" in command("bench", "--help").stdout
    done = command("bench", "poetry", check=False)
    assert done.returncode == 2
    assert "invalid choice: 'poetry'" in done.stderr


def test_path_config_and_report_print(command, capsys):
    assert command("path").stdout.strip() == hakmem.mode().path
    assert "HAKMEM_PURGE_MS" in command("config").stdout
    assert "| HAKMEM_PURGE_MS" in command("config", "--fmt", "github").stdout
    assert "committed_bytes" in command("report").stdout
    assert json.loads(command("report", "classes", "--fmt", "json").stdout)["view"] == "classes"
    assert command("report", "--fmt", "poetry", check=False).stderr.startswith("hakmem: report: no format 'poetry'")
    assert hakmem.main(["path"]) == 0
    assert capsys.readouterr().out.strip() == hakmem.mode().path


def test_an_import_takes_no_module_that_only_commands_need() -> None:
    code = "import sys; before = set(sys.modules); import hakmem; print(*set(sys.modules) - before)"
    taken = succeed([sys.executable, "-c", code], preload=False,
                    env={"PYTHONPATH": str(ROOT), "HAKMEM_LIBRARY": str(library())}).split()  # fmt: skip
    assert "hakmem" in taken
    assert not {"argparse", "csv", "datetime", "difflib", "html", "shutil", "subprocess", "tabulate"} & {*taken}


def test_help_has_the_commands_in_the_order_in_which_one_meets_them() -> None:
    said = succeed([sys.executable, "-m", "hakmem", "--help"], preload=False, env={"PYTHONPATH": str(ROOT)})
    commands = "run ps top why report trim set watch snapshot diff doctor exporter config path bench"
    assert re.findall(r"^    (\w+) ", said, re.MULTILINE) == commands.split()
    for words, why in (
        (["top", "x"], "'x': not the number of a process"),
        (["trim", "0"], "'0': not the number of a process"),
        (["report", "x"], "'x': neither the number of a process nor a view: summary, "),
        (["watch", "1", "--interval", "soon"], "'soon': 0.01 to 86400 seconds"),
    ):
        done = run_it([sys.executable, "-m", "hakmem", *words], preload=False, env={"PYTHONPATH": str(ROOT)})
        assert (done.returncode, why in done.stderr.decode()) == (2, True), done.stderr
