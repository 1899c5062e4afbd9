"""The page heap's free runs, and giving their memory back while its lock is dropped round the call to the system."""

from __future__ import annotations

from interleavings import Step, System, Thread, must

FREE, HEAD, PURGING = "free", "head", "purging"  # 0, HAK_RUN_HEAD, HAK_RUN_PURGING

# What a mutation may take out: the C function and the expression that has it.
PARTS = {
    "the mark on a purged run's first unit": ("hak_page_purge", "hak_store(&hak_unit[u], HAK_RUN_PURGING);"),
    "the mark on a purged run's last unit": ("hak_page_purge", "hak_store(&hak_unit[u + len - 1], HAK_RUN_PURGING);"),
    "the removal of a purged run from the free ones": ("hak_page_purge", "hak_run_remove_locked(r);"),
    "the lock that lets one thread purge at a time": ("hak_page_purge", "hak_lock_try(&hak_page.purging)"),
}


class Pages(System):
    """Four units: a free run of two in the middle, which a thread purges while its neighbours come and go."""

    def __init__(self, without: str = "", purgers: int = 1, freers: str = "03", takers: int = 1) -> None:
        super().__init__(without)
        self.page = self.record("page heap", lock="", purging="", free=(), in_hand=0)
        self.unit = tuple(self.record(f"unit {u}", word=HEAD, len=1, dirty=True, user="") for u in range(4))
        for u in (0, 3):
            self.unit[u].user = f"freer {u}" if str(u) in freers else "nobody's step"
        for u in (1, 2):
            self.unit[u].word = FREE
        self.hak_run_insert_locked(1, 2)
        for i in range(purgers):
            self.threads[f"purger {i}"] = self.hak_page_purge(f"purger {i}")
        for u in freers:
            self.threads[f"freer {u}"] = self.hak_large_free(f"freer {u}", int(u))
        for i in range(takers):
            self.threads[f"taker {i}"] = self.hak_large_alloc(f"taker {i}", 2)

    def unlocked(self) -> bool:
        return not self.page.lock

    def hak_run_insert_locked(self, u: int, length: int) -> None:
        self.unit[u].len = self.unit[u + length - 1].len = length
        self.page.free = tuple(sorted({*self.page.free, u}))

    def hak_run_remove_locked(self, u: int) -> None:
        must(u in self.page.free, f"the run at unit {u} is taken from a list that it is not on")
        self.page.free = tuple(x for x in self.page.free if x != u)

    def hak_run_free_locked(self, u: int, length: int) -> None:
        start, end = u, u + length
        for i in range(u, end):
            self.unit[i].word = FREE
        if start > 0 and self.unit[start - 1].word == FREE:
            start -= self.unit[start - 1].len
            self.hak_run_remove_locked(start)
        if end < len(self.unit) and self.unit[end].word == FREE:
            self.hak_run_remove_locked(end)
            end += self.unit[end].len
        self.hak_run_insert_locked(start, end - start)

    def hak_large_free(self, me: str, u: int) -> Thread:
        yield Step("hak_lock(&hak_page.lock);", self.unlocked)
        self.unit[u].user = ""
        self.hak_run_free_locked(u, 1)

    def hak_large_alloc(self, me: str, units: int) -> Thread:
        """Takes a run, writes to it, reads it, and frees it; takes none if there is none."""
        yield Step("hak_lock(&hak_page.lock);", self.unlocked)
        u = next((u for u in self.page.free if self.unit[u].len >= units), None)
        if u is None:
            return
        length = self.unit[u].len
        self.hak_run_remove_locked(u)
        if length > units:
            self.hak_run_insert_locked(u + units, length - units)
        for i in range(u, u + units):
            must(not self.unit[i].user, f"unit {i} is handed out twice")
            self.unit[i].user, self.unit[i].dirty, self.unit[i].word = me, True, HEAD
        yield Step("hak_lock(&hak_page.lock);", self.unlocked)
        for i in range(u, u + units):
            must(self.unit[i].dirty, f"unit {i} is purged while {me} uses it")
            self.unit[i].user = ""
        self.hak_run_free_locked(u, units)

    def hak_page_purge(self, me: str) -> Thread:
        page, units = self.page, self.unit
        yield "hak_lock_try(&hak_page.purging)"
        if page.purging and self.has("the lock that lets one thread purge at a time"):
            return
        page.purging = me
        yield Step("hak_lock(&hak_page.lock);", self.unlocked)
        u = next((u for u in page.free if any(units[i].dirty for i in range(u, u + units[u].len))), None)
        if u is not None:
            length = units[u].len
            if self.has("the removal of a purged run from the free ones"):
                self.hak_run_remove_locked(u)
            if self.has("the mark on a purged run's first unit"):
                units[u].word = PURGING
            if self.has("the mark on a purged run's last unit"):
                units[u + length - 1].word = PURGING
            page.in_hand = length  # hak_page.purging_dirty: statistics read it
            yield "done &= hak_os_purge(hak_slab_of(i)->base, (size_t)n << HAK_UNIT_SHIFT);"
            for i in range(u, u + length):
                must(not units[i].user, f"unit {i} is purged while {units[i].user} uses it")
            yield Step("hak_lock(&hak_page.lock);", self.unlocked)
            for i in range(u, u + length):
                units[i].dirty = False
            must(page.in_hand == length, "what another thread purges is not counted")
            page.in_hand = 0
            self.hak_run_free_locked(u, length)
        yield "hak_unlock(&hak_page.purging);"
        must(page.purging == me, f"{me} and {page.purging} purge together")
        page.purging = ""
