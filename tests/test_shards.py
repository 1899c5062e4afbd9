"""The page heap's shards become more where threads wait for them, and lose, hide or hoard no memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from _helpers import ROOT, program, succeed

import hakmem

MANY, GROWING = {"HAKMEM_SHARDS": "64"}, {"HAKMEM_SHARD_THRESHOLD": "1"}
FIXED = {"HAKMEM_SHARD_THRESHOLD": "0"}


def shards(case: str, env: dict[str, str]) -> None:
    built = program("shards.c", "-DHAK_NO_OVERRIDE=1", also=ROOT / "_hakmem_backend.c")
    assert succeed([built, case], env=env, preload=False) == "done\n"


def test_threads_that_wait_for_a_shard_make_more_of_them() -> None:
    shards("grow", {})


def test_memory_follows_the_threads_from_shard_to_shard() -> None:
    shards("follow", {**MANY, **FIXED})


def test_what_bigcache_keeps_of_one_shard_serves_the_others() -> None:
    shards("serve", {**MANY, **FIXED})


@pytest.mark.parametrize("env", [MANY, GROWING], ids=["64 shards", "growing"])
def test_children_forked_from_threads_in_every_shard(env: dict[str, str]) -> None:
    assert succeed([program("forks.c", "-O2"), 60], env=env) == "60 of 60 children ended with 0\n"


@pytest.mark.parametrize("case", ["statistics_while_threads_run", "producers_and_consumers", "free_only_thread"])
def test_threads_with_64_shards(case: str) -> None:
    succeed([program("threads.c"), case], env={**MANY, **FIXED})


def test_the_table_adds_up_to_the_counters() -> None:
    pointer = hakmem.malloc(3 << 20)
    rows, stats = hakmem.shard_table(), hakmem.memory_stats()
    assert [row.shard for row in rows] == list(range(stats["shards"]))
    assert sum(row.superslabs for row in rows) == stats["superslabs"]
    at_hand = sum(piece["total_size"] for piece in hakmem.memory_snapshot() if piece["state"] == "at hand")
    assert sum(row.used_bytes for row in rows) == stats["in_use_bytes"] - stats["whale_bytes"] + at_hand
    assert sum(row.large_blocks for row in rows) == stats["large_blocks"] >= 1
    taken = {row.name: row.taken for row in hakmem.lock_table()}["page_heap"]
    assert sum(row.taken for row in rows) == taken > 0
    hakmem.free(pointer)
    view = json.loads(hakmem.report("shards", "json"))["tables"]
    assert [row["shard"] for row in view["shards"]] == [row.shard for row in rows]
    assert {row["counter"] for row in view["counters"]} == {
        "shards", "shard_growths", "superslabs_moved", "runs_borrowed",
    }  # fmt: skip


@pytest.mark.parametrize(("asked", "got"), [("1", 1), ("5", 8), ("64", 64)])
def test_the_number_of_shards_is_a_power_of_two(python: Any, asked: str, got: int) -> None:
    python(f"import hakmem; assert len(hakmem.shard_table()) == {got}", HAKMEM_SHARDS=asked)
