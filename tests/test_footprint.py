"""A program that has freed everything and sits idle gives its memory back, whoever freed it and in whatever order."""

from __future__ import annotations

import re

import pytest
from _helpers import program, succeed


@pytest.mark.parametrize("who", ["own", "other"])
@pytest.mark.parametrize("order", ["in_order", "shuffled"])
def test_idle_after_freeing_450_mb(order: str, who: str) -> None:
    out = succeed([program("footprint.c", "-O2"), order, who])
    match = re.fullmatch(r"peak (-?\d+) idle (-?\d+) trimmed (-?\d+)\n", out)
    assert match, out
    idle, trimmed = int(match[2]), int(match[3])
    assert idle <= 60_000, f"{idle} KiB more than at the start, three seconds after everything was freed"
    assert trimmed <= 16_000, f"{trimmed} KiB more than at the start, after malloc_trim(0)"
