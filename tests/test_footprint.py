"""A program pays for what it uses: little to begin with, and nothing once it has freed everything and sits idle."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
from _helpers import library, program, succeed

release = pytest.mark.skipif(
    "-" in Path(os.environ.get("HAKMEM_LIBRARY", "")).stem,
    reason="what other variants than release cost is not in question",
)


@release
def test_one_malloc_makes_few_pages_the_process_s_own() -> None:
    """17 more than with the system's malloc; it was 27 before somebody looked."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        pytest.skip("the kernel has no smaps_rollup")
    alone, ours = (int(succeed([program("once.c")], preload=preload)) for preload in (False, True))
    assert (ours - alone) * 1024 <= 22 * max(os.sysconf("SC_PAGESIZE"), 4096)


@release
def test_the_dynamic_linker_has_little_to_fill_in() -> None:
    """Each relocation is read, and its page written, in every process that starts: tables of texts have none."""
    image = library().read_bytes()
    at, _flags = struct.unpack_from("=QI", image, 40)  # the section headers of a 64-bit ELF file
    size, count = struct.unpack_from("=HH", image, 58)
    headers = [struct.unpack_from("=IIQQQQIIQQ", image, at + size * i) for i in range(count)]
    relocations = sum(header[5] // 24 for header in headers if header[1] == 4)  # SHT_RELA
    assert 0 < relocations < 400


@pytest.mark.parametrize("who", ["own", "other"])
@pytest.mark.parametrize("order", ["in_order", "shuffled"])
def test_idle_after_freeing_450_mb(order: str, who: str) -> None:
    out = succeed([program("footprint.c", "-O2"), order, who])
    match = re.fullmatch(r"peak (-?\d+) idle (-?\d+) trimmed (-?\d+)\n", out)
    assert match, out
    idle, trimmed = int(match[2]), int(match[3])
    assert idle <= 60_000, f"{idle} KiB more than at the start, three seconds after everything was freed"
    assert trimmed <= 16_000, f"{trimmed} KiB more than at the start, after malloc_trim(0)"
