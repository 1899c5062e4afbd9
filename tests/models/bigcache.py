"""A run on its way between callers, BigCache and the page heap, by its unit word and its key."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from interleavings import Step, System, Thread, must

FREE, HEAD, BODY, KEPT = "free", "head", "body", "kept"  # 0, HAK_RUN_HEAD, HAK_RUN_BODY, HAK_RUN_KEPT

# What a mutation may take out: the C function and the expression that has it.
PARTS = {
    "the compare-and-swap of a large free": ("hak_large_free", "if (!hak_cas(&hak_unit[u], &word, HAK_RUN_KEPT))"),
    "the word of a run that is live again": (
        "hak_big_take",
        "hak_store(&hak_unit[hak_big_run(b)->unit], HAK_RUN_HEAD);",
    ),
    "the key that a run loses with its place": ("hak_big_remove_locked", "b->key = NULL;"),
    "the key that a new run has not got": ("hak_large_alloc", "r->big.key = NULL;"),
    "the look at the key of a kept neighbour": ("hak_run_unkeep_at_locked", "hak_slab_of(u)->big.key"),
    "BigCache's lock in an eviction": ("hak_run_unkeep_oldest_locked", "hak_lock(&hak_bigcache.lock);"),
}


class Kept(System):
    """One run: freed, kept, taken again, evicted, made anew, and wanted by a neighbour that grows."""

    def __init__(
        self, without: str = "", freers: int = 1, takers: int = 1, purgers: int = 1, growers: int = 1, makers: int = 1
    ) -> None:
        super().__init__(without)
        self.freers = freers
        self.page = self.record("page heap", lock="", free=False)
        self.cache = self.record("BigCache", lock="", holds=False)
        self.run = self.record("the run", word=HEAD, key=False, user="its first caller", died=0)
        for i in range(freers):  # more than one: a misuse
            self.threads[f"freer {i}"] = self.hak_large_free(f"freer {i}")
        for i in range(takers):
            self.threads[f"taker {i}"] = self.hak_large_reuse(f"taker {i}")
        for i in range(purgers):
            self.threads[f"purger {i}"] = self.hak_shard_purge(f"purger {i}")
        for i in range(growers):
            self.threads[f"grower {i}"] = self.hak_large_resize(f"grower {i}")
        for i in range(makers):
            self.threads[f"maker {i}"] = self.hak_large_alloc(f"maker {i}")

    def page_unlocked(self) -> bool:
        return not self.page.lock

    def cache_unlocked(self) -> bool:
        return not self.cache.lock

    def remove(self) -> None:
        """hak_big_remove_locked."""
        must(self.cache.holds, "a run leaves BigCache that is not in it")
        self.cache.holds = False
        if self.has("the key that a run loses with its place"):
            self.run.key = False

    def unkeep(self) -> None:
        """hak_run_unkeep_locked; what becomes of free units may write over the key."""
        self.remove()
        must(not self.run.user, f"the run becomes free while {self.run.user} has it")
        self.run.word, self.run.key, self.page.free = FREE, True, True

    def hak_large_free(self, me: str) -> Thread:
        run = self.run
        yield "hak_cas(&hak_unit[u], &word, HAK_RUN_KEPT)"
        live = run.word == HEAD
        if live and not self.has("the compare-and-swap of a large free"):
            yield "hak_cas(&hak_unit[u], &word, HAK_RUN_KEPT)"
        if not live:
            must(self.freers > 1, f"{me} frees what it has, and is told that it is free")
            run.died += 1
            return
        run.word, run.user = KEPT, ""
        yield from self.hak_big_put()

    def hak_big_put(self) -> Thread:
        yield Step("hak_lock(&hak_bigcache.lock);", self.cache_unlocked)
        must(not self.cache.holds, "the run is put into BigCache twice")
        must(self.run.word == KEPT, f"a run is kept whose word is {self.run.word}")
        self.cache.holds, self.run.key = True, True

    def hak_large_reuse(self, me: str) -> Thread:
        got = yield from self.hak_big_take(me)
        if got:
            yield from self.hak_large_free(me)

    def hak_big_take(self, me: str) -> Generator[Any, Any, bool]:
        yield Step("hak_lock(&hak_bigcache.lock);", self.cache_unlocked)
        if not self.cache.holds:
            return False
        self.remove()
        must(not self.run.user, f"the run goes to {me} while {self.run.user} has it")
        self.run.user = me
        if self.has("the word of a run that is live again"):
            self.run.word = HEAD
        return True

    def hak_shard_purge(self, me: str) -> Thread:
        yield Step("hak_lock(&shard->lock);", self.page_unlocked)
        self.page.lock = me
        yield from self.hak_run_unkeep_oldest_locked(me)
        self.page.lock = ""

    def hak_run_unkeep_oldest_locked(self, me: str) -> Thread:
        if self.has("BigCache's lock in an eviction"):
            yield Step("hak_lock(&hak_bigcache.lock);", self.cache_unlocked)
            self.cache.lock = me
        else:
            yield "hak_lock(&hak_bigcache.lock);"
        found = self.cache.holds
        if found:
            yield "hak_run_unkeep_locked(shard, hak_big_run(b));"
            self.unkeep()
        self.cache.lock = ""

    def hak_large_resize(self, me: str) -> Thread:
        """The run before this one grows into its units, if they are free or become so."""
        yield Step("*shard = hak_shard_lock(u);", self.page_unlocked)
        self.page.lock = me
        yield from self.hak_run_unkeep_at_locked()
        if self.page.free:
            must(not self.run.user, f"{me} grows into what {self.run.user} has")
            self.page.free, self.run.word, self.run.user = False, BODY, me
        self.page.lock = ""

    def hak_run_unkeep_at_locked(self) -> Thread:
        yield Step("hak_lock(&hak_bigcache.lock);", self.cache_unlocked)
        if self.run.word == KEPT and (self.run.key or not self.has("the look at the key of a kept neighbour")):
            self.unkeep()

    def hak_large_alloc(self, me: str) -> Thread:
        yield Step("hak_lock(&shard->lock);", self.page_unlocked)
        if not self.page.free:
            return
        must(not self.run.user, f"the run is made for {me} while {self.run.user} has it")
        self.page.free, self.run.word, self.run.user = False, HEAD, me
        if self.has("the key that a new run has not got"):
            self.run.key = False
        yield from self.hak_large_free(me)

    def invariant(self) -> None:
        must(not (self.cache.holds and self.page.free), "the run is kept and free")
        must(not (self.cache.holds and self.run.user), f"the run is kept while {self.run.user} has it")

    def final(self) -> None:
        if self.freers > 1:
            must(self.run.died == self.freers - 1, f"{self.run.died} of {self.freers} frees of one run are found out")
