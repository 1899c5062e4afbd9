"""The page heap: free runs, memory given back without a lock, superslabs that change hands, how much is kept."""

from __future__ import annotations

from typing import Any, Optional

from interleavings import Step, System, Thread, must

FREE, HEAD, PURGING = "free", "head", "purging"  # 0, HAK_RUN_HEAD, HAK_RUN_PURGING
UNITS = 2  # of a superslab

# What a mutation may take out: the C function and the expression that has it.
PARTS = {
    "the mark on a purged run's first unit": ("hak_shard_purge", "hak_store(&hak_unit[u], HAK_RUN_PURGING);"),
    "the mark on a purged run's last unit": ("hak_shard_purge", "hak_store(&hak_unit[u + len - 1], HAK_RUN_PURGING);"),
    "the removal of a purged run from the free ones": ("hak_shard_purge", "hak_run_remove_locked(shard, r);"),
    "the lock that lets one thread purge at a time": ("hak_page_purge", "hak_lock_try(&hak_page.purging)"),
    "the note of a purge that was wanted": ("hak_page_purge", "hak_exchange(&hak_page.missed, true);"),
    "the second try after that note": ("hak_page_purge", "if (!hak_lock_try(&hak_page.purging)) return returned;"),
    "the look at that note after a purge": ("hak_page_purge", "hak_exchange(&hak_page.missed, false)"),
    "the look at a neighbour's shard": (
        "hak_shard_has_free_locked",
        "hak_load(&super->shard) == hak_shard_number(shard)",
    ),
    "the second look at a unit's shard": ("hak_shard_lock", "if (hak_likely(hak_shard_of(u) == shard))"),
    "the order of two shards' locks": ("hak_shard_lock_beside", "if (other < own) hak_unlock(&own->lock);"),
    "the giver's lock where a superslab moves": ("hak_shard_lock_beside", "hak_lock(&other->lock);"),
    "the purge lock of a growth": ("hak_shard_grow", "if (!hak_lock_try(&hak_page.purging)) return;"),
}


class Pages(System):
    """Two superslabs of two units: runs are purged, freed, taken by heaps of their shard or another, and looked at."""

    def __init__(
        self,
        without: str = "",
        *,
        purgers: int = 1,
        freers: str = "03",
        takers: tuple[int, ...] = (0,),
        lookers: str = "",
        growers: int = 0,
        forkers: int = 0,
        free: tuple[tuple[int, int], ...] = ((1, 2),),
        of: tuple[int, int] = (0, 0),
        shards: int = 1,
    ) -> None:
        super().__init__(without)
        self.page = self.record("page heap", purging="", shards=shards, in_hand=0)
        self.shard = tuple(self.record(f"shard {i}", number=i, lock="", free=()) for i in range(2))
        self.super = tuple(self.record(f"superslab {i}", shard=of[i]) for i in range(2))
        self.unit = tuple(self.record(f"unit {u}", word=HEAD, len=1, dirty=True, user="") for u in range(4))
        for u, length in free:
            for i in range(u, u + length):
                self.unit[i].word = FREE
            self.hak_run_insert_locked(self.hak_shard_of(u), u, length)
        for i in range(purgers):
            self.threads[f"purger {i}"] = self.hak_page_purge(f"purger {i}")
        for name in freers:
            self.unit[int(name)].user = f"freer {name}"
            self.threads[f"freer {name}"] = self.hak_large_free(f"freer {name}", int(name))
        for i in range(len(takers)):
            self.threads[f"taker {i}"] = self.hak_large_alloc(f"taker {i}", takers[i], UNITS)
        for name in lookers:
            self.threads[f"looker {name}"] = self.hak_block_find(f"looker {name}", int(name))
        for i in range(growers):
            self.threads[f"grower {i}"] = self.hak_shard_grow(f"grower {i}")
        for i in range(forkers):
            self.threads[f"forker {i}"] = self.fork(f"forker {i}")

    # ---- locks

    def hak_lock(self, shard: Any) -> Thread:
        mine = self.thread
        yield Step("hak_lock_uncounted(l)", lambda: not shard.lock)
        for other in [each for each in self.shard if each.lock == mine]:
            must(other.number < shard.number, f"{shard} is locked while {other} is")
        shard.lock = mine

    def hak_unlock(self, shard: Any) -> None:
        self.held(shard)
        shard.lock = ""

    def held(self, shard: Any) -> None:
        must(shard.lock == self.thread, f"{self.thread} is where {shard} is needed, and does not hold it")

    def hak_shard_of(self, u: int) -> Any:
        return self.shard[self.super[u // UNITS].shard]

    def hak_shard_lock(self, u: int) -> Thread:
        while True:
            yield "hak_shard_t *shard = hak_shard_of(u);"
            shard = self.hak_shard_of(u)
            yield from self.hak_lock(shard)
            if self.hak_shard_of(u) is shard or not self.has("the second look at a unit's shard"):
                return shard
            self.hak_unlock(shard)

    def hak_shard_lock_beside(self, own: Any, other: Any) -> Thread:
        if not self.has("the giver's lock where a superslab moves"):
            return
        first = other.number < own.number and self.has("the order of two shards' locks")
        if first:
            self.hak_unlock(own)
        yield from self.hak_lock(other)
        if first:
            yield from self.hak_lock(own)

    # ---- runs

    def hak_run_insert_locked(self, shard: Any, u: int, length: int) -> None:
        self.unit[u].len = self.unit[u + length - 1].len = length
        shard.free = tuple(sorted({*shard.free, u}))

    def hak_run_remove_locked(self, shard: Any, u: int) -> None:
        must(u in shard.free, f"the run at unit {u} is taken from a list that it is not on")
        shard.free = tuple(x for x in shard.free if x != u)

    def hak_shard_has_free_locked(self, shard: Any, u: int) -> bool:
        if not 0 <= u < len(self.unit):
            return False
        ours = self.hak_shard_of(u) is shard or not self.has("the look at a neighbour's shard")
        return bool(ours and self.unit[u].word == FREE)

    def hak_run_free_locked(self, shard: Any, u: int, length: int) -> None:
        self.held(shard)
        start, end = u, u + length
        for i in range(u, end):
            must(self.hak_shard_of(i) is shard, f"unit {i} is freed into {shard}, which has not got it")
            self.unit[i].word = FREE
        if self.hak_shard_has_free_locked(shard, start - 1):
            start -= self.unit[start - 1].len
            self.hak_run_remove_locked(shard, start)
        if self.hak_shard_has_free_locked(shard, end):
            self.hak_run_remove_locked(shard, end)
            end += self.unit[end].len
        self.hak_run_insert_locked(shard, start, end - start)

    def hak_run_cut_locked(self, shard: Any, u: int, skip: int, units: int) -> None:
        length = self.unit[u].len
        self.hak_run_remove_locked(shard, u)
        if skip:
            self.hak_run_insert_locked(shard, u, skip)
        if length > skip + units:
            self.hak_run_insert_locked(shard, u + skip + units, length - skip - units)

    def hak_run_find_locked(self, shard: Any, units: int) -> Optional[int]:
        return next((u for u in shard.free if self.unit[u].len >= units), None)

    def hak_shard_move_locked(self, giver: Any, taker: Any) -> None:
        for u in giver.free:
            skip = -u % UNITS
            if skip + UNITS <= self.unit[u].len:
                self.hak_run_cut_locked(giver, u, skip, UNITS)
                self.super[(u + skip) // UNITS].shard = taker.number
                self.hak_run_free_locked(taker, u + skip, UNITS)
                return

    def hak_shard_borrow_locked(self, own: Any, units: int) -> Thread:
        other = self.shard[1 - own.number]
        ways = (True, False)
        for whole in ways:
            yield from self.hak_shard_lock_beside(own, other)
            beside = other.lock == self.thread
            if whole and self.hak_run_find_locked(own, units) is None:
                yield "hak_shard_move_locked(other, own, kind, now);"  # sees whether another thread is there, too
                must(other.lock in ("", self.thread), f"a superslab of {other} moves while {other.lock} is at it")
                self.hak_shard_move_locked(other, own)
            u = self.hak_run_find_locked(own, units)
            if u is not None:
                if beside:
                    self.hak_unlock(other)
                return own, u
            u = self.hak_run_find_locked(other, units)
            if not whole and u is not None:
                self.hak_unlock(own)
                return other, u
            if beside:
                self.hak_unlock(other)
        return own, None

    def hak_run_get_locked(self, own: Any, units: int) -> Thread:
        u = self.hak_run_find_locked(own, units)
        if u is not None or self.page.shards == 1:
            return own, u
        return (yield from self.hak_shard_borrow_locked(own, units))

    # ---- what threads do

    def hak_large_free(self, me: str, u: int) -> Thread:
        shard = yield from self.hak_shard_lock(u)
        self.unit[u].user = ""
        self.hak_run_free_locked(shard, u, 1)
        self.hak_unlock(shard)

    def hak_large_alloc(self, me: str, heap: int, units: int) -> Thread:
        """Takes a run, writes to it, reads it, and frees it; takes none if there is none."""
        yield "hak_shard_for(at, 0);"
        own = self.shard[heap % self.page.shards]
        yield from self.hak_lock(own)
        shard, u = yield from self.hak_run_get_locked(own, units)
        if u is None:
            self.hak_unlock(shard)
            return
        self.hak_run_cut_locked(shard, u, 0, units)
        for i in range(u, u + units):
            must(not self.unit[i].user, f"unit {i} is handed out twice")
            self.unit[i].user, self.unit[i].dirty, self.unit[i].word = me, True, HEAD
        self.hak_unlock(shard)
        shard = yield from self.hak_shard_lock(u)
        for i in range(u, u + units):
            must(self.unit[i].dirty, f"unit {i} is purged while {me} uses it")
            self.unit[i].user = ""
        self.hak_run_free_locked(shard, u, units)
        self.hak_unlock(shard)

    def hak_block_find(self, me: str, u: int) -> Thread:
        yield "word = hak_word(u);"
        if self.unit[u].word != HEAD:
            return
        shard = yield from self.hak_shard_lock(u)
        must(self.hak_shard_of(u) is shard, f"{me} looks at unit {u} under the lock of a shard that has not got it")
        self.hak_unlock(shard)

    def hak_page_purge(self, me: str) -> Thread:
        page = self.page
        yield "hak_lock_try(&hak_page.purging)"
        if page.purging and self.has("the lock that lets one thread purge at a time"):
            return
        page.purging = me
        for i in range(page.shards):
            yield from self.hak_shard_purge(self.shard[i])
        yield "hak_unlock(&hak_page.purging);"
        must(page.purging == me, f"{me} and {page.purging} purge together")
        page.purging = ""

    def hak_shard_purge(self, shard: Any) -> Thread:
        page, units = self.page, self.unit
        yield from self.hak_lock(shard)
        u = next((u for u in shard.free if any(units[i].dirty for i in range(u, u + units[u].len))), None)
        if u is not None:
            length = units[u].len
            if self.has("the removal of a purged run from the free ones"):
                self.hak_run_remove_locked(shard, u)
            if self.has("the mark on a purged run's first unit"):
                units[u].word = PURGING
            if self.has("the mark on a purged run's last unit"):
                units[u + length - 1].word = PURGING
            page.in_hand = length  # purging_dirty: statistics read it
            self.hak_unlock(shard)
            yield "done &= hak_os_purge(hak_slab_of(i)->base, (size_t)n << HAK_UNIT_SHIFT);"
            for i in range(u, u + length):
                must(not units[i].user, f"unit {i} is purged while {units[i].user} uses it")
            yield from self.hak_lock(shard)
            for i in range(u, u + length):
                units[i].dirty = False
            must(page.in_hand == length, "what another thread purges is not counted")
            page.in_hand = 0
            self.hak_run_free_locked(shard, u, length)
        self.hak_unlock(shard)

    def hak_shard_grow(self, me: str) -> Thread:
        page = self.page
        yield "if (!hak_lock_try(&hak_page.purging))"
        locked = self.has("the purge lock of a growth")
        if locked and page.purging:
            return
        page.purging = me if locked else page.purging
        yield "hak_store(&hak_page.shards, 2 * hak_page.shards);"
        page.shards = len(self.shard)
        yield "hak_unlock(&hak_page.purging);"
        page.purging = "" if locked else page.purging

    def fork(self, me: str) -> Thread:
        yield from self.hak_fork_prepare(me)
        yield from self.hak_fork_parent()

    def hak_fork_prepare(self, me: str) -> Thread:
        yield Step("hak_fork_each_shared(hak_fork_take);", lambda: not self.page.purging)
        self.page.purging = me
        for i in range(self.page.shards):
            yield from self.hak_lock(self.shard[i])

    def hak_fork_parent(self) -> Thread:
        yield "hak_fork_drop(l);"
        self.page.purging = ""
        for i in range(self.page.shards):
            self.hak_unlock(self.shard[i])

    # ---- what has to hold

    def invariant(self) -> None:
        for shard in self.shard:
            for u in shard.free:
                if not shard.lock:
                    must(self.hak_shard_of(u) is shard, f"{shard} lists unit {u}, which it has not got")

    def final(self) -> None:
        must(not any(shard.lock for shard in self.shard), "a shard is locked for ever")
        listed = [i for shard in self.shard for u in shard.free for i in range(u, u + self.unit[u].len)]
        free = [i for i in range(len(self.unit)) if self.unit[i].word == FREE]
        must(sorted(listed) == free, f"free are {free}, and listed {sorted(listed)}")


class Allowance(System):
    """Threads free all that they have: in the end no more is kept than is in use, whoever happened to be purging."""

    def __init__(self, without: str = "", freers: int = 2, units: int = 3) -> None:
        super().__init__(without)
        self.page = self.record("page heap", purging="", missed=False, used=freers * units, kept=0)
        for i in range(freers):
            self.threads[f"freer {i}"] = self.hak_page_release(f"freer {i}", units)

    def hak_page_release(self, me: str, units: int) -> Thread:
        page = self.page
        for _unit in range(units):
            yield "bool over = hak_run_release_locked(shard, u, units, stamp);"
            page.used, page.kept = page.used - 1, page.kept + 1
            if page.kept > page.used:
                yield from self.hak_page_purge(me)

    def hak_page_purge(self, me: str) -> Thread:
        page = self.page
        while True:
            yield "hak_lock_try(&hak_page.purging)"
            if page.purging:
                yield "hak_exchange(&hak_page.missed, true);"
                page.missed = self.has("the note of a purge that was wanted")
                if not self.has("the second try after that note"):
                    return
                yield "if (!hak_lock_try(&hak_page.purging))"
                if page.purging:
                    return
            page.purging = me
            yield from self.hak_page_purge_locked()
            yield "hak_unlock(&hak_page.purging);"
            page.purging = ""
            yield "hak_exchange(&hak_page.missed, false)"
            missed, page.missed = page.missed and self.has("the look at that note after a purge"), False
            if not missed:
                return
            yield "hak_page_kept() > hak_page_allowance()"
            if page.kept <= page.used:
                return

    def hak_page_purge_locked(self) -> Thread:
        page = self.page
        yield "keep = hak_page_allowance();"
        keep = page.used
        while True:
            yield "hak_page_kept() > keep"
            if page.kept <= keep:
                return
            page.kept -= 1

    def final(self) -> None:
        must(self.page.kept <= self.page.used, f"{self.page.kept} units are kept, {self.page.used} may be")
