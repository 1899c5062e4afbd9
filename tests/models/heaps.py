"""Heaps, their inboxes and slabs, orphans and fork: what threads do to each other's blocks.

A method that is named hak_... stands for the C function of that name.  A step ends before each access that another
thread can see without the same lock; what is done under a lock from its acquisition on is one step with it (taking a
lock commutes with what others do later, giving it back with what they do earlier), but for the stores in between that
are read without it.  Sizes are counted in blocks, a slab has two or three of them, and there is one class at a time.
"""

from __future__ import annotations

from typing import Any, ClassVar, Optional

from interleavings import Step, System, Thread, must

CLOSED = "closed"  # HAK_CLOSED; an inbox may also be None, or a batch
NONE, ORPHAN, SHARED, FIRST = 0, 2, 3, 4  # HAK_OWNER_...
NOT, WAITING, UNUSED = "", "waiting", "unused"  # HAK_KEPT_...
AT_HAND = 1  # HAK_RUN_AT_HAND, as the owner of a slab's unit

# What a mutation may take out: the C function and the expression that has it.
PARTS = {
    "CLOSED in the loop of a post": ("hak_batch_post", "if (seen == HAK_CLOSED)"),
    "the subtraction where an inbox is closed": ("hak_batch_post", "hak_sub_shared(&h->inbox_bytes, b->bytes);"),
    "the look at the clock where a push fails": (
        "hak_batch_post",
        "if (!seen) hak_store(&h->inbox_stamp, hak_os_now());",
    ),
    "the exchange of a drain": ("hak_heap_drain_locked", "b = hak_exchange(&h->inbox, leave);"),
    "the closing of the inbox at a thread's end": (
        "hak_heap_abandon",
        "stray = hak_heap_drain_locked(h, false, NULL, HAK_CLOSED);",
    ),
    "the look at each block's owner in a drain": (
        "hak_batch_free_locked",
        "if (hak_unlikely(hak_word_owner(word) != h->id))",
    ),
    "the rerouting of strays after a drain": ("hak_heap_abandon", "hak_batch_reroute(NULL, stray);"),
    "the second posting at a thread's end": (
        "hak_heap_abandon",
        "hak_heap_post_all(h); /* what sorting the stacks out has put there */",
    ),
    "the re-check under the page heap's lock": ("hak_block_free_anywhere", "if (hak_word(u) != word)"),
    "the re-check under the claim": ("hak_block_free_anywhere", "if (hak_word(u) == word)"),
    "the look at the owner of a block in a batch of orphans": (
        "hak_batch_free_orphans",
        "if (hak_word_owner(word) != HAK_OWNER_ORPHAN || hak_shard_of(u) != shard)",
    ),
    "the removal of an adopted slab from its list": (
        "hak_heap_adopt_locked",
        "hak_orphan_delist_locked(shard, s);",
    ),
    "the shard of a block in a batch of orphans": (
        "hak_batch_free_orphans",
        "if (hak_word_owner(word) != HAK_OWNER_ORPHAN || hak_shard_of(u) != shard)",
    ),
    "the change of locks in a disowning": ("hak_heap_disown_locked", "shard = hak_shard_switch(shard, s->unit);"),
    "the page heap's lock of an adoption": ("hak_orphan_find", "hak_lock(&own->lock); return own;"),
    "the words of a disowned slab": (
        "hak_heap_disown_locked",
        "hak_words_set(s->unit, s->len, (HAK_OWNER_ORPHAN << 8) | c);",
    ),
    "the lost flag": ("hak_heap_disown_locked", "h->lost = 1;"),
    "the second look at the lost flag": ("hak_claim_own", "for (;; hak_heap_sort_out(h))"),
    "the sorting out before a flush": ("hak_heap_abandon", "hak_claim_own(h);"),
    "the sorting out before a capacity falls": ("hak_adapt_all", "hak_claim_own(h); a = hak_adapt_locked(h, c, true);"),
    "the second look at a block's owner in an overflow": (
        "hak_heap_overflow",
        "if (hak_unlikely(hak_word(hak_unit_of(p)) != (h->tag | c)))",
    ),
    "the claim given back before strays are rerouted": (
        "hak_batch_free_claimed",
        "hak_unclaim(h); b->next = stray; hak_batch_reroute(self, b);",
    ),
    "the look whether an idle heap waits before it is disowned": (
        "hak_batch_free_claimed",
        "if (alone && !closed && ++h->left_alone >= HAK_LEFT_ALONE)",
    ),
    "the claim of a thread that takes a waiting heap over": ("hak_heap_begin", "hak_claim(h);"),
    "the look whether a heap waits before its stacks are flushed": (
        "hak_heap_break_up_locked",
        "if (waits) hak_heap_flush_all_locked(h);",
    ),
    "the removal of a traded heap from those that wait": ("hak_heap_trade", "*at = k->next_free;"),
    "the claim given back before strays are sent": (
        "hak_heap_sort_out",
        "hak_unclaim(h); for (uint32_t i = 0; i < n; i++)",
    ),
    "the claims before the page heap in fork": (
        "hak_fork_prepare",
        "hak_fork_each_claim(hak_fork_take); hak_fork_each_shared(hak_fork_take);",
    ),
    "the order of the claims in fork": ("hak_fork_each_claim", "for (uint32_t id = HAK_OWNER_SHARED;"),
    "the claims in fork": ("hak_fork_prepare", "hak_fork_each_claim(hak_fork_take);"),
    "the emptied inboxes of a child": ("hak_fork_child", "hak_store(&h->inbox, NULL);"),
    "the emptied inbox bytes of a child": ("hak_fork_child", "hak_store(&h->inbox_bytes, 0u);"),
    "the dropped stacks of a child": ("hak_fork_forget", "hak_heap_stack_reset(h, c);"),
    "the dropped batches of a child": ("hak_fork_forget", "h->out[i] = NULL;"),
    "the retired heaps of a child": ("hak_fork_child", "hak_heap_retire(h, true);"),
    "the renewed claims of a child": ("hak_fork_child", "hak_fork_each_claim(hak_fork_renew);"),
    "the patience of a drain in fork": ("hak_heap_drain_locked", "if (b == leave || hak_fork_is_here())"),
    "the claim that a heap made in fork is born with": ("hak_heap_make_locked", "hak_lock_grab(&h->claim)"),
}


class Heaps(System):
    """hakmem with up to three heaps and slabs of a few blocks."""

    def __init__(
        self,
        without: str = "",
        *,
        slabs: str = "AB",
        blocks: int = 2,
        heaps: tuple[int, ...] = (4, 5),
        made: Optional[int] = None,
        top: int = 2,
        batch: int = 1,
        full: int = 99,
        alone: int = 99,
        torn: tuple[str, ...] = (),
        keep: bool = False,
        hand: int = 0,
        shards: int = 1,
    ) -> None:
        super().__init__(without)
        self.top, self.batch, self.full, self.alone, self.torn = top, batch, full, alone, torn
        self.keep, self.hand = keep, hand  # whether slabs are well used; units that a heap has at hand at most
        self.locks: list[Any] = []
        self.heaps_lock = self.lock("heaps lock", (0, 0))
        self.heap = {
            i: self.record(
                f"heap {i}",
                id=i,
                claim=self.lock(f"claim {i}", (1, i)),
                running=False,
                inbox=CLOSED,
                inbox_bytes=0,
                level=0,
                capacity=0,
                slot=(None,) * top,
                out=None,
                out_owner=0,
                slabs=(),
                lost=False,
                left_alone=0,
                kept=NOT,
                units=(),
                flushed=False,
            )
            for i in heaps
        }
        self.purging = self.lock("purge lock", (2, 0))
        self.shard = tuple(self.lock(f"shard {i}'s lock", (3, i)) for i in range(shards))  # slab A's, B's, A's again
        self.idle = self.record("heaps", free=(), made=len(heaps) if made is None else made)
        self.page = self.record("page heap", orphans=(), free=())
        # Ghosts: what was sent and not yet received; the class that each block that is out was made with.
        # After fork: the blocks that may stay used for ever in the child, and those of them that somebody still had.
        self.ghost = self.record("ghost", transit=0, made={}, limbo=frozenset(), live=frozenset())
        self.fork = self.record("fork", thread="", copy={})
        self.slab = {
            n: self.record(n, word=(NONE, 0), blocks=tuple(f"{n}{i}" for i in range(blocks)), free=frozenset())
            for n in slabs
        }
        for s in self.slab.values():
            s.free = frozenset(s.blocks)
            self.page.free += (s,)
        self.batches = [self.record(f"batch {i}", next=None, blocks=(), bytes=0, used=False) for i in range(6)]
        self.callers: dict[str, Any] = {}

    # ---- how a scenario begins

    def lock(self, name: str, rank: tuple[int, int]) -> Any:
        self.locks.append(self.record(name, holder="", rank=rank))
        return self.locks[-1]

    def caller(self, name: str, *operations: tuple[Any, ...], heap: int = 0, holds: str = "", stack: str = "") -> None:
        """A thread that does some operations; blocks are named by their slab and their number."""
        h = self.heap[heap] if heap else None
        self.callers[name] = self.record(name, heap=h, holds=tuple(holds.split()))
        self.threads[name] = self.program(name, operations)
        out = (*holds.split(), *stack.split())
        for p in out:
            self.slab[p[0]].free -= {p}
            self.ghost.made = {**self.ghost.made, p: 1}
        if h:
            h.running, h.inbox = True, None
            h.slot = (*stack.split(), *h.slot)[: self.top]
            h.level = len(stack.split())
            h.capacity = self.top if stack else 0

    def owns(self, heap: int, *names: str) -> None:
        """Gives slabs to a heap, 0 for the orphans."""
        for n in names:
            s = self.slab[n]
            self.page.free = tuple(x for x in self.page.free if x is not s)
            s.word = (heap or ORPHAN, 1)
            if heap:
                self.heap[heap].slabs += (s,)
            else:
                self.page.orphans += (s,)

    def then_collect(self) -> None:
        """When all are done, a thread without a heap trims."""
        self.callers["collector"] = self.record("collector", heap=None, holds=())
        self.threads["collector"] = self.collect()

    # ---- threads

    def program(self, name: str, operations: tuple[tuple[Any, ...], ...]) -> Thread:
        for i in range(len(operations)):
            yield from getattr(self, operations[i][0])(self.callers[name], *operations[i][1:])

    def malloc(self, me: Any, c: int = 1) -> Thread:
        p = yield from self.hak_hot_malloc_for(me, c)
        if p:
            me.holds += (p,)

    def free(self, me: Any, p: str) -> Thread:
        me.holds = tuple(x for x in me.holds if x != p)  # before the first step of hak_hot_free: nobody sees it
        yield from self.hak_hot_free(me, p)

    def free_all(self, me: Any) -> Thread:
        while me.holds:
            p, me.holds = me.holds[0], me.holds[1:]
            yield from self.hak_hot_free(me, p)

    def exit(self, me: Any) -> Thread:
        h, me.heap = me.heap, "dead"
        if h:
            yield from self.hak_heap_retire(h)

    def fork_with(self, me: Any, end: str, handlers: tuple[tuple[Any, ...], ...]) -> Thread:
        """fork, with handlers of other libraries that run while this thread holds every lock."""
        yield from self.hak_fork_prepare(me)
        if end == "child":
            yield from self.copy(me)
        yield from self.program(me.name, handlers)
        if end == "child":
            yield from self.hak_fork_child(me)
        else:
            yield from self.hak_fork_parent(me)

    def trim(self, me: Any) -> Thread:
        yield from self.hak_trim(me)

    def sweep(self, me: Any) -> Thread:
        yield from self.hak_adapt_all(me.heap)

    def help(self, me: Any, heap: int) -> Thread:
        yield from self.hak_heap_help(me, self.heap[heap])

    def collect(self) -> Thread:
        me = self.callers["collector"]
        yield Step("all others are done", self.others_are_done)
        yield from self.hak_trim(me)

    def others_are_done(self) -> bool:
        return all(t.gi_frame is None or n == "collector" or n in self.gone for n, t in self.threads.items())

    # ---- locks

    def hak_fork_is_here(self) -> bool:
        return bool(self.fork.thread == self.thread)

    def hak_lock(self, k: Any) -> Thread:
        mine = self.thread
        yield Step("hak_lock_uncounted(l)", lambda: not k.holder or self.fork.thread == mine)
        if self.hak_fork_is_here():
            k.holder = k.holder or mine
            return
        for other in [each for each in self.locks if each.holder == mine]:
            several = k.rank[0] == 3 or (k.rank[0] == 1 and self.heaps_lock.holder == mine)  # shards; claims in fork
            in_order = other.rank < k.rank and (other.rank[0] != k.rank[0] or several)
            must(in_order, f"{k} is taken while {other} is held")
        k.holder = mine

    def hak_unlock(self, k: Any) -> None:
        if not self.hak_fork_is_here():
            self.held(k)
            k.holder = ""

    def held(self, k: Any) -> None:
        must(k.holder == self.thread, f"{self.thread} is where {k} is needed, and {k.holder or 'nobody'} holds it")

    def hak_claim(self, h: Any) -> Thread:
        yield from self.hak_lock(h.claim)

    def hak_unclaim(self, h: Any) -> None:
        self.hak_unlock(h.claim)

    # ---- slabs

    def hak_heap_by_id(self, owner: int) -> Any:
        return self.heap.get(owner)

    def hak_slab_mark_all(self, s: Any, p: str) -> None:
        must(p not in s.free, f"{p} is freed twice")
        must(self.ghost.made.get(p) == s.word[1], f"{p} is freed into a slab of another class")
        self.ghost.made = {k: v for k, v in self.ghost.made.items() if k != p}
        s.free |= {p}

    def hak_slab_take(self, s: Any) -> str:
        p = min(s.free)
        s.free -= {p}
        self.ghost.made = {**self.ghost.made, p: s.word[1]}
        return p

    def hak_heap_put_locked(self, h: Any, s: Any, p: str) -> Thread:
        self.held(h.claim)
        must(s.word[0] == h.id, f"{h} puts {p} into a slab that it does not own")
        self.hak_slab_mark_all(s, p)
        if len(s.free) == len(s.blocks):
            yield from self.hak_heap_release_locked(h, s)

    def hak_heap_release_locked(self, h: Any, s: Any) -> Thread:
        h.slabs = tuple(x for x in h.slabs if x is not s)
        if len(h.units) < self.hand:
            yield "hak_words_set(s->unit, 1, HAK_RUN_AT_HAND);"
            s.word = (AT_HAND, 0)
            h.units += (s,)
        else:
            yield from self.hak_page_release(s)

    def hak_heap_release_units_locked(self, h: Any) -> Thread:
        while h.units:
            s, h.units = h.units[-1], h.units[:-1]
            yield from self.hak_page_release(s)

    def hak_page_release(self, s: Any) -> Thread:
        shard = yield from self.hak_shard_lock(s)
        self.hak_run_release_locked(s)
        self.hak_unlock(shard)

    def hak_shard_of(self, s: Any) -> Any:
        return self.shard[[*self.slab.values()].index(s) % len(self.shard)]  # for ever: models.pages has the others

    def hak_shard_lock(self, s: Any) -> Thread:
        shard = self.hak_shard_of(s)
        yield from self.hak_lock(shard)
        return shard

    def hak_shard_switch(self, shard: Any, s: Any) -> Thread:
        if shard is self.hak_shard_of(s):
            return shard
        if shard:
            if not self.has("the change of locks in a disowning"):
                return shard
            self.hak_unlock(shard)
        return (yield from self.hak_shard_lock(s))

    def hak_run_release_locked(self, s: Any) -> None:
        self.held(self.hak_shard_of(s))
        must(len(s.free) == len(s.blocks), f"{s} is released with blocks out")
        must(s not in self.page.free, f"{s} is released twice")
        s.word = (NONE, 0)
        self.page.free += (s,)

    def hak_heap_flush_locked(self, h: Any, n: int) -> Thread:
        self.held(h.claim)
        flushed = h.slot[:n]
        h.slot = (*h.slot[n:], *flushed)  # C does this last: nobody sees the stack in between
        h.level -= n
        h.flushed = True
        for p in flushed:
            must(p, f"garbage in a stack of {h}")
            yield from self.hak_heap_put_locked(h, self.slab[p[0]], p)
        h.flushed = False

    def hak_heap_flush_all_locked(self, h: Any) -> Thread:
        yield from self.hak_heap_flush_locked(h, h.level)
        h.capacity = 0

    # ---- remote frees

    def hak_batch_new(self) -> Any:
        b = next(b for b in self.batches if not b.used)
        b.used, b.next, b.blocks, b.bytes = True, None, (), 0
        return b

    def hak_batch_recycle(self, b: Any) -> None:
        must(b.used, f"{b} is recycled twice")
        b.used, b.blocks, b.next, b.bytes = False, (), None, 0

    def hak_orphan_count_put_locked(self, s: Any, p: str) -> None:
        self.held(self.hak_shard_of(s))
        must(s.word[0] == ORPHAN and s in self.page.orphans, f"{p} is put into {s} as an orphan, which it is not")
        if len(s.free) == len(s.blocks):
            self.page.orphans = tuple(x for x in self.page.orphans if x is not s)
            self.hak_run_release_locked(s)

    def hak_batch_free_orphans(self, b: Any) -> Thread:
        looks = self.has("the look at the owner of a block in a batch of orphans")
        more = True
        while more:
            more, shard = False, None
            kept: tuple[str, ...] = ()
            blocks = b.blocks
            for p in blocks:
                s = self.slab[p[0]]
                if not shard:
                    yield "word = hak_word(u)"
                    if s.word[0] == ORPHAN or not looks:
                        shard = yield from self.hak_shard_lock(s)
                orphan = s.word[0] == ORPHAN or not looks
                same = shard is self.hak_shard_of(s) or not self.has("the shard of a block in a batch of orphans")
                if not orphan or not same:
                    more = more or orphan
                    kept += (p,)
                    continue
                self.ghost.transit -= 1
                self.hak_slab_mark_all(s, p)
                self.hak_orphan_count_put_locked(s, p)
            b.blocks = kept
            if shard:
                self.hak_unlock(shard)

    def hak_batch_free_locked(self, h: Any, b: Any, owner: bool) -> Thread:
        kept: tuple[str, ...] = ()
        blocks = b.blocks
        for p in blocks:
            if self.slab[p[0]].word[0] != h.id and self.has("the look at each block's owner in a drain"):
                kept += (p,)
                continue
            self.ghost.transit -= 1
            if owner and h.level < h.capacity:
                h.slot = (*h.slot[: h.level], p, *h.slot[h.level + 1 :])
                h.level += 1
                continue
            yield from self.hak_heap_put_locked(h, self.slab[p[0]], p)
        b.blocks = kept
        return b.bytes

    def hak_heap_drain_locked(self, h: Any, owner: bool, leave: Optional[str]) -> Thread:
        self.held(h.claim)
        yield "hak_load(&h->inbox)"
        b = h.inbox
        if b == leave or (self.hak_fork_is_here() and self.has("the patience of a drain in fork")):
            return ()
        if self.has("the exchange of a drain"):
            yield "hak_exchange(&h->inbox, leave)"
            b = h.inbox
        else:
            yield "hak_exchange(&h->inbox, leave)"
        h.inbox = leave
        if b == CLOSED:
            b = None
        stray: tuple[Any, ...] = ()
        size = 0
        while b and b != CLOSED:
            following = b.next
            size += yield from self.hak_batch_free_locked(h, b, owner)
            if b.blocks:
                stray += (b,)
            else:
                self.hak_batch_recycle(b)
            b = following
        yield "hak_sub_shared(&h->inbox_bytes, bytes)"
        h.inbox_bytes -= size
        return stray

    def hak_block_free_anywhere(self, p: str, received: bool) -> Thread:
        s = self.slab[p[0]]
        while True:
            yield "word = hak_word(u)"
            word = s.word
            if word[0] == ORPHAN:
                shard = yield from self.hak_shard_lock(s)
                if s.word != word and self.has("the re-check under the page heap's lock"):
                    self.hak_unlock(shard)
                    continue
                self.ghost.transit -= received
                self.hak_slab_mark_all(s, p)
                self.hak_orphan_count_put_locked(s, p)
                self.hak_unlock(shard)
                return
            h = self.hak_heap_by_id(word[0])
            must(h, f"{p} is freed, and no heap has its slab")
            yield from self.hak_claim(h)
            if s.word == word or not self.has("the re-check under the claim"):
                self.ghost.transit -= received
                yield from self.hak_heap_put_locked(h, s, p)
                self.hak_unclaim(h)
                return
            self.hak_unclaim(h)

    def hak_batch_reroute(self, todo: tuple[Any, ...]) -> Thread:
        for b in todo:
            if b.blocks:
                yield from self.hak_batch_free_orphans(b)
            blocks = b.blocks
            for p in blocks:
                yield from self.hak_block_free_anywhere(p, True)
            self.hak_batch_recycle(b)

    def hak_heap_keep_locked(self, h: Any, kept: str) -> Thread:
        self.held(h.claim)
        yield "hak_store(&h->kept, kept);"
        h.kept = kept

    def hak_heap_disown_locked(self, h: Any) -> Thread:
        self.held(h.claim)
        shard = None
        while h.units:
            s, h.units = h.units[-1], h.units[:-1]
            shard = yield from self.hak_shard_switch(shard, s)
            self.hak_run_release_locked(s)
        while h.slabs:
            s, h.slabs = h.slabs[0], h.slabs[1:]
            shard = yield from self.hak_shard_switch(shard, s)
            if len(s.free) == len(s.blocks):
                self.hak_run_release_locked(s)
                continue
            yield "hak_words_set(s->unit, s->len, (HAK_OWNER_ORPHAN << 8) | c)"
            if self.has("the words of a disowned slab"):
                s.word = (ORPHAN, s.word[1])
            self.held(self.hak_shard_of(s))
            self.page.orphans += (s,)
        if shard:
            self.hak_unlock(shard)
        h.left_alone = 0
        if self.has("the lost flag"):
            h.lost = True
        yield from self.hak_heap_keep_locked(h, NOT)

    def hak_heap_drain(self, h: Any) -> Thread:
        stray: tuple[Any, ...] = ()
        yield from self.hak_claim(h)
        if h.inbox != CLOSED:
            stray = yield from self.hak_heap_drain_locked(h, False, None)
        self.hak_unclaim(h)
        yield from self.hak_batch_reroute(stray)

    def hak_batch_free_claimed(self, h: Any, b: Any, alone: bool) -> Thread:
        stray: tuple[Any, ...] = ()
        yield from self.hak_claim(h)
        closed = h.inbox == CLOSED and self.has("the look whether an idle heap waits before it is disowned")
        if h.inbox != CLOSED:
            stray = yield from self.hak_heap_drain_locked(h, False, None)
        yield from self.hak_batch_free_locked(h, b, False)
        h.left_alone += alone and not closed
        if alone and not closed and h.left_alone >= self.alone:
            yield from self.hak_heap_disown_locked(h)
        early = not self.has("the claim given back before strays are rerouted")
        if early:
            yield from self.hak_batch_reroute((b, *stray))
        self.hak_unclaim(h)
        if not early:
            yield from self.hak_batch_reroute((b, *stray))

    def hak_batch_post(self, b: Any, owner: int) -> Thread:
        h = self.hak_heap_by_id(owner) if owner >= FIRST else None
        if not h:
            yield from self.hak_batch_reroute((b,))
            return
        yield "hak_load(&h->inbox_bytes) >= hak_target_remote()"
        if h.inbox_bytes >= self.full:
            yield from self.hak_batch_free_claimed(h, b, True)
            return
        yield "hak_add_shared(&h->inbox_bytes, b->bytes)"
        h.inbox_bytes += b.bytes
        yield "seen = hak_load(&h->inbox)"
        seen = h.inbox
        first, looked = True, False
        while True:
            if seen == CLOSED and self.has("CLOSED in the loop of a post"):
                yield "hak_sub_shared(&h->inbox_bytes, b->bytes)"
                if self.has("the subtraction where an inbox is closed"):
                    h.inbox_bytes -= b.bytes
                yield from self.hak_batch_free_claimed(h, b, False)
                return
            if seen is None and (first or self.has("the look at the clock where a push fails")):
                yield "hak_store(&h->inbox_stamp, hak_os_now())"
                looked = True
            first = False
            b.next = seen
            yield "hak_cas(&h->inbox, &seen, b)"
            if h.inbox is seen:
                must(seen is not None or looked, f"{h}'s inbox ceases to be empty with an old stamp")
                h.inbox = b
                return
            seen = h.inbox

    def hak_heap_post(self, h: Any) -> Thread:
        b, h.out = h.out, None
        yield from self.hak_batch_post(b, h.out_owner)

    def hak_heap_post_all(self, h: Any) -> Thread:
        if h.out:
            yield from self.hak_heap_post(h)

    def hak_remote_send(self, h: Any, p: str, word: tuple[int, int]) -> Thread:
        if h.out and h.out_owner != word[0]:
            yield from self.hak_heap_post(h)
        b = h.out
        if not b:
            b = self.hak_batch_new()
            h.out_owner = word[0]
            h.out = b
        if self.torn:
            yield "b->block[hak_fill_blocks(b->fill)] = p;"  # nobody sees it but a child
        b.blocks += (p,)
        b.bytes += 1
        self.ghost.transit += 1
        if len(b.blocks) == self.batch:
            yield from self.hak_heap_post(h)

    def hak_heap_strays_locked(self, h: Any) -> tuple[str, ...]:
        self.held(h.claim)
        stack = h.slot[: h.level]
        kept = tuple(p for p in stack if self.slab[p[0]].word[0] == h.id)
        h.level = len(kept)
        h.slot = (*kept, *h.slot[len(kept) :])
        return tuple(p for p in stack if p not in kept)

    def hak_heap_sort_out(self, h: Any) -> Thread:
        yield from self.hak_claim(h)
        h.lost = False
        stray = self.hak_heap_strays_locked(h)
        early = self.has("the claim given back before strays are sent")
        if early:
            self.hak_unclaim(h)
        for p in stray:
            yield "hak_word(hak_unit_of(stray[i]))"
            word = self.slab[p[0]].word
            yield from self.hak_remote_send(h, p, word)
        if not early:
            self.hak_unclaim(h)

    def hak_claim_own(self, h: Any) -> Thread:
        sorted_out = False
        while True:
            yield from self.hak_claim(h)
            h.left_alone = 0
            if not h.lost or (sorted_out and not self.has("the second look at the lost flag")):
                return
            self.hak_unclaim(h)
            yield from self.hak_heap_sort_out(h)
            sorted_out = True

    # ---- refill and flush

    def orphan_in(self, shard: Any, c: int) -> Any:
        orphans = (s for s in self.page.orphans if self.hak_shard_of(s) is shard)
        return next((s for s in orphans if s.word[1] == c and s.free), None)

    def free_in(self, shard: Any) -> Any:
        return next((s for s in self.page.free if self.hak_shard_of(s) is shard), None)

    def hak_orphan_find(self, own: Any, c: int) -> Thread:
        yield "hak_load(&hak_page.orphaned[c])"
        others = tuple(shard for shard in self.shard if shard is not own and self.orphan_in(shard, c))
        if not self.orphan_in(own, c):
            for shard in others:
                yield from self.hak_lock(shard)
                s = self.orphan_in(shard, c)
                if s:
                    return shard
                self.hak_unlock(shard)
        if self.has("the page heap's lock of an adoption"):
            yield from self.hak_lock(own)
        return own

    def hak_shard_lock_beside(self, own: Any, other: Any) -> Thread:
        if other.rank < own.rank:
            self.hak_unlock(own)
        yield from self.hak_lock(other)
        if other.rank < own.rank:
            yield from self.hak_lock(own)

    def hak_run_alloc_locked(self, own: Any) -> Thread:
        s = self.free_in(own)
        if s or len(self.shard) == 1:
            return own, s
        other = self.shard[1 - self.shard.index(own)]
        yield from self.hak_shard_lock_beside(own, other)
        s = self.free_in(own)
        if s:
            self.hak_unlock(other)
            return own, s
        self.hak_unlock(own)
        return other, self.free_in(other)

    def hak_heap_adopt_locked(self, h: Any, shard: Any, c: int) -> Thread:
        s = self.orphan_in(shard, c)
        if s:
            yield "hak_words_set(s->unit, s->len, h->tag | c);"
            if self.has("the removal of an adopted slab from its list"):
                self.page.orphans = tuple(x for x in self.page.orphans if x is not s)
            s.word = (h.id, c)
            h.slabs += (s,)

    def hak_heap_new_slab_locked(self, h: Any, c: int) -> Thread:
        self.held(h.claim)
        yield "hak_load(&hak_page.orphaned[c]) == 0"
        if h.units and not any(s.word[1] == c for s in self.page.orphans):
            s, h.units = h.units[-1], h.units[:-1]
            s.word = (h.id, c)
            h.slabs += (s,)
            return
        slabs = len(h.slabs)
        shard = yield from self.hak_orphan_find(self.shard[h.id % len(self.shard)], c)
        yield from self.hak_heap_adopt_locked(h, shard, c)
        if len(h.slabs) == slabs and self.page.free:
            shard, s = yield from self.hak_run_alloc_locked(shard)
            if s:
                self.page.free = tuple(x for x in self.page.free if x is not s)
                s.word = (h.id, c)
                h.slabs += (s,)
        if shard.holder == self.thread or self.has("the page heap's lock of an adoption"):
            self.hak_unlock(shard)

    def hak_heap_take_locked(self, h: Any, c: int) -> Thread:
        self.held(h.claim)
        if not self.hak_bin_has_room(h, c):
            yield from self.hak_heap_new_slab_locked(h, c)
        s = next((s for s in h.slabs if s.word[1] == c and s.free), None)
        return self.hak_slab_take(s) if s else None

    def hak_bin_has_room(self, h: Any, c: int) -> bool:
        return any(s.word[1] == c and s.free for s in h.slabs)

    def hak_inbox_is_stale(self, h: Any) -> bool:
        return h.inbox not in (None, CLOSED)  # at any age: time is not modelled

    def hak_heap_is_left(self, h: Any) -> bool:
        return bool(h.kept != NOT)  # likewise

    def hak_heap_break_up_locked(self, h: Any) -> Thread:
        self.held(h.claim)
        if h.kept == WAITING or not self.has("the look whether a heap waits before its stacks are flushed"):
            yield from self.hak_heap_flush_all_locked(h)
        waits = h.kept == WAITING
        yield from self.hak_heap_disown_locked(h)
        h.lost = h.lost and not waits

    def hak_heap_help(self, me: Any, h: Any) -> Thread:
        yield "hak_inbox_is_stale(h, now) || hak_heap_is_left(h, now)"
        if not self.hak_inbox_is_stale(h) and not self.hak_heap_is_left(h):
            return
        yield from self.hak_claim(h)
        stray: tuple[Any, ...] = ()
        if self.hak_inbox_is_stale(h):
            stray = yield from self.hak_heap_drain_locked(h, False, None)
            yield from self.hak_heap_disown_locked(h)
        elif self.hak_heap_is_left(h):
            yield from self.hak_heap_break_up_locked(h)
        self.hak_unclaim(h)
        yield from self.hak_batch_reroute(stray)

    # ---- capacities

    def hak_adapt_begin_locked(self, h: Any) -> None:
        self.held(h.claim)
        h.capacity = h.capacity or self.top

    def hak_adapt_locked(self, h: Any) -> Thread:
        """Always down, to half: that is what may flush.  At 1 the stack goes out of use."""
        self.held(h.claim)
        to = h.capacity // 2
        yield from self.hak_heap_flush_locked(h, max(h.level - to // 2, 0))
        h.capacity = to

    def hak_adapt_all(self, h: Any) -> Thread:
        if not h.capacity:
            return
        if self.has("the sorting out before a capacity falls"):
            yield from self.hak_claim_own(h)
        else:
            yield from self.hak_claim(h)
        yield from self.hak_adapt_locked(h)
        self.hak_unclaim(h)

    def hak_heap_refill(self, h: Any, c: int) -> Thread:
        yield from self.hak_claim(h)
        h.left_alone = 0
        yield "hak_store(&h->kept, (uint32_t)HAK_KEPT_NOT);"
        must(h.kept != WAITING, f"{h} waits, and has a thread")
        h.kept = NOT
        self.hak_adapt_begin_locked(h)
        stray = yield from self.hak_heap_drain_locked(h, True, None)
        if h.level:
            h.level -= 1
            p = h.slot[h.level]
        else:
            p = yield from self.hak_heap_take_locked(h, c)
        self.hak_unclaim(h)
        yield from self.hak_batch_reroute(stray)
        return p

    def hak_heap_overflow(self, h: Any, p: str) -> Thread:
        yield from self.hak_claim_own(h)
        word = self.slab[p[0]].word
        if word[0] != h.id and self.has("the second look at a block's owner in an overflow"):
            self.hak_unclaim(h)
            yield from self.hak_remote_send(h, p, word)
            return
        self.hak_adapt_begin_locked(h)
        if h.capacity == 0:
            yield from self.hak_heap_put_locked(h, self.slab[p[0]], p)
        else:
            if h.level == h.capacity:
                yield from self.hak_heap_flush_locked(h, (h.capacity + 1) // 2)
            h.slot = (*h.slot[: h.level], p, *h.slot[h.level + 1 :])
            h.level += 1
        self.hak_unclaim(h)

    # ---- thread start and end

    def hak_heap_abandon(self, h: Any) -> Thread:
        yield from self.hak_heap_post_all(h)
        if self.has("the sorting out before a flush"):
            yield from self.hak_claim_own(h)
        else:
            yield from self.hak_claim(h)
        leave = CLOSED if self.has("the closing of the inbox at a thread's end") else None
        stray = yield from self.hak_heap_drain_locked(h, False, leave)
        if self.keep and h.slabs:
            yield from self.hak_heap_keep_locked(h, WAITING)
        else:
            yield from self.hak_heap_flush_all_locked(h)
            yield from self.hak_heap_disown_locked(h)
            h.lost = False
        self.hak_unclaim(h)
        if self.has("the rerouting of strays after a drain"):
            yield from self.hak_batch_reroute(stray)
        if self.has("the second posting at a thread's end"):
            yield from self.hak_heap_post_all(h)

    def hak_heap_retire(self, h: Any) -> Thread:
        yield from self.hak_heap_abandon(h)
        yield from self.hak_lock(self.heaps_lock)
        h.running = False
        self.idle.free += (h,)
        self.hak_unlock(self.heaps_lock)

    def hak_heap_make_locked(self, i: int) -> Any:
        h = self.heap[i]
        self.held(self.heaps_lock)
        if self.hak_fork_is_here() and self.has("the claim that a heap made in fork is born with"):
            h.claim.holder = self.thread
        return h

    def hak_heap_attach(self, me: Any) -> Thread:
        if me.heap == "dead":
            return None
        if me.heap:
            return me.heap
        yield from self.hak_lock(self.heaps_lock)
        h = None
        if self.idle.free:
            h, self.idle.free = self.idle.free[0], self.idle.free[1:]
        elif self.idle.made < len(self.heap):
            h = self.hak_heap_make_locked(FIRST + self.idle.made)
            yield "hak_store_release(&hak_heaps.made, hak_heaps.made + 1)"
            self.idle.made += 1
        if h:
            must(not h.running, f"{h} has two threads")
            h.running = True
        self.hak_unlock(self.heaps_lock)
        if not h:
            return None
        yield from self.hak_heap_begin(me, h)
        return h

    def hak_heap_begin(self, me: Any, h: Any) -> Thread:
        claimed = self.has("the claim of a thread that takes a waiting heap over")
        if claimed:
            yield from self.hak_claim(h)
        yield "hak_store(&h->inbox, NULL);"
        h.inbox = None
        if h.kept == WAITING:
            h.kept = UNUSED
        if claimed:
            self.hak_unclaim(h)
        me.heap = h

    def hak_heap_trade(self, me: Any, h: Any, c: int) -> Thread:
        yield from self.hak_claim(h)
        own = len(h.slabs)
        enough = self.hak_bin_has_room(h, c) or h.inbox is not None
        self.hak_unclaim(h)
        if enough or self.hak_fork_is_here():
            return h
        yield from self.hak_lock(self.heaps_lock)
        yield "hak_load(&k->kept) != HAK_KEPT_WAITING"
        k = next((k for k in self.idle.free if k.kept == WAITING), None)
        trade = False
        if k:
            yield from self.hak_claim(k)
            trade = k.kept == WAITING and len(k.slabs) > own
            if k.kept == WAITING and not trade:
                yield from self.hak_heap_break_up_locked(k)
            self.hak_unclaim(k)
        if trade:
            if self.has("the removal of a traded heap from those that wait"):
                self.idle.free = tuple(x for x in self.idle.free if x is not k)
            must(not k.running, f"{k} has two threads")
            k.running = True
        self.hak_unlock(self.heaps_lock)
        if not trade:
            return h
        yield from self.hak_heap_begin(me, k)
        yield from self.hak_heap_retire(h)
        return k

    # ---- what callers call

    def hak_hot_malloc_for(self, me: Any, c: int) -> Thread:
        h = me.heap
        if h and h != "dead" and h.level:
            yield "hak_store(&h->v[c], v + HAK_POP);"
            must(not h.flushed, f"{me} pops while another thread flushes the stacks of {h}")
            h.level -= 1
            return h.slot[h.level]
        return (yield from self.hak_malloc_slow(me, c))

    def hak_malloc_slow(self, me: Any, c: int) -> Thread:
        h = yield from self.hak_heap_attach(me)
        must(h, "a thread without a heap allocates, which this model has not got")
        if self.keep:
            yield "hak_unlikely(hak_load(&hak_heaps.kept) != 0)"
            if any(k.kept == WAITING for k in self.heap.values()):
                h = yield from self.hak_heap_trade(me, h, c)
        p = yield from self.hak_heap_refill(h, c)
        return p

    def hak_hot_free(self, me: Any, p: str) -> Thread:
        h = me.heap
        yield "hak_load(&hak_unit[u])"
        word = self.slab[p[0]].word
        if not h or h == "dead" or word[0] != h.id or h.level == h.capacity:
            yield from self.hak_free_slow(me, p)
            return
        yield "h->slot[at + 1] = p;"
        must(not h.flushed, f"{me} pushes while another thread flushes the stacks of {h}")
        h.slot = (*h.slot[: h.level], p, *h.slot[h.level + 1 :])
        if self.torn:
            yield "hak_store(&h->v[c], v + HAK_PUSH);"  # nobody sees it but a child
        h.level += 1

    def hak_free_slow(self, me: Any, p: str) -> Thread:
        yield "word = hak_word(u);"
        word = self.slab[p[0]].word
        must(word[0] >= ORPHAN, f"{p} is freed, and its slab is gone")
        h = yield from self.hak_heap_attach(me)
        if not h:
            yield from self.hak_block_free_anywhere(p, False)
        elif word[0] != h.id:
            yield from self.hak_remote_send(h, p, word)
        elif h.level == h.capacity:
            yield from self.hak_heap_overflow(h, p)
        else:
            h.slot = (*h.slot[: h.level], p, *h.slot[h.level + 1 :])
            h.level += 1

    def hak_trim(self, me: Any) -> Thread:
        own = me.heap if me.heap != "dead" else None
        if own:
            yield from self.hak_claim_own(own)
            self.hak_unclaim(own)
            yield from self.hak_heap_post_all(own)
        i = FIRST
        while True:
            yield "hak_load_acquire(&hak_heaps.made)"
            if i >= FIRST + self.idle.made:
                break
            h = self.heap[i]
            i += 1
            stray: tuple[Any, ...] = ()
            if h is own:
                yield from self.hak_claim_own(h)
            else:
                yield from self.hak_claim(h)
            if h.inbox != CLOSED:
                stray = yield from self.hak_heap_drain_locked(h, h is own, None)
            if h is own:
                yield from self.hak_heap_flush_all_locked(h)
            elif h.kept == WAITING:
                yield from self.hak_heap_break_up_locked(h)
            yield "sum += hak_heap_purge_locked(h);"
            yield from self.hak_heap_purge_locked(h)
            self.hak_unclaim(h)
            yield from self.hak_batch_reroute(stray)

    def hak_heap_purge_locked(self, h: Any) -> Thread:
        self.held(h.claim)
        yield from self.hak_heap_release_units_locked(h)

    # ---- fork

    def hak_fork_prepare(self, me: Any) -> Thread:
        for i in range(FIRST, FIRST + self.idle.made):
            yield from self.hak_heap_drain(self.heap[i])
        yield from self.hak_lock(self.heaps_lock)
        if self.has("the claims before the page heap in fork"):
            yield from self.hak_fork_each_claim()
            yield from self.hak_fork_each_shared()
        else:
            yield from self.hak_fork_each_shared()
            yield from self.hak_fork_each_claim()
        self.fork.thread = self.thread

    def hak_fork_each_claim(self) -> Thread:
        ids = tuple(range(FIRST, FIRST + self.idle.made))
        if not self.has("the claims in fork"):
            ids = ()
        if not self.has("the order of the claims in fork"):
            ids = ids[::-1]
        for i in ids:
            yield from self.hak_lock(self.heap[i].claim)

    def hak_fork_each_shared(self) -> Thread:
        yield from self.hak_lock(self.purging)
        for k in self.shard:
            yield from self.hak_lock(k)

    def hak_fork_parent(self, me: Any) -> Thread:
        yield "hak_store(&hak_fork_thread, NULL);"
        self.fork.thread = ""
        for k in self.shard:
            self.hak_unlock(k)
        self.hak_unlock(self.purging)
        for i in range(FIRST, FIRST + self.idle.made):
            self.hak_unlock(self.heap[i].claim)
        self.hak_unlock(self.heaps_lock)

    PAGES: ClassVar[
        dict[str, tuple[str, tuple[str, ...]]]
    ] = {  # what threads write without a lock that fork takes; the system copies each by itself
        "stacks' indices": ("heap", ("level",)),
        "stacks": ("heap", ("slot",)),
        "outgoing batches": ("heap", ("out", "out_owner")),
        "inboxes": ("heap", ("inbox", "inbox_bytes")),
        "batches": ("batch", ("next", "blocks", "bytes", "used")),
    }

    def copy(self, me: Any) -> Thread:
        """The system copies the process, page by page, and the child begins with what was copied."""
        for page in self.torn:
            kind, fields = self.PAGES[page]
            yield f"fork copies {page}"
            self.fork.copy = {
                **self.fork.copy,
                **{(r.name, f): getattr(r, f) for r in self.records if r.name.startswith(kind + " ") for f in fields},
            }
        yield "fork copies the rest"
        own = me.heap
        mine = {*me.holds, *(own.slot[: own.level] if own else ()), *(own.out.blocks if own and own.out else ())}
        self.ghost.limbo = frozenset(self.ghost.made) - mine
        self.ghost.live = self.ghost.limbo - {*self.reachable()} | {p for c in self.callers.values() for p in c.holds}
        self.gone = frozenset(self.threads) - {self.thread, "collector"}
        for r in self.records:
            for f in list(vars(r)):
                if (r.name, f) in self.fork.copy:
                    setattr(r, f, self.fork.copy[r.name, f])
        for name in self.gone:
            self.callers[name].holds = ()
        self.ghost.live -= {*me.holds}

    def hak_fork_child(self, me: Any) -> Thread:
        self.fork.thread = ""
        for k in self.locks:
            if k.rank[0] != 1 or self.has("the renewed claims of a child"):
                k.holder = ""
        for i in range(FIRST, FIRST + self.idle.made):
            h = self.heap[i]
            if self.has("the emptied inbox bytes of a child"):
                h.inbox_bytes = 0
            if h.running and self.has("the emptied inboxes of a child"):
                h.inbox = None
            if h.running and h is not me.heap:
                self.hak_fork_forget(h)
        if not self.has("the retired heaps of a child"):
            return
        for i in range(FIRST, FIRST + self.idle.made):
            h = self.heap[i]
            if h.running and h is not me.heap:
                yield from self.hak_heap_retire(h)

    def hak_fork_forget(self, h: Any) -> None:
        if self.has("the dropped stacks of a child"):
            h.level, h.capacity, h.slot = 0, 0, (None,) * self.top
        if self.has("the dropped batches of a child"):
            h.out = None
        h.lost = False

    # ---- what has to hold

    def reachable(self) -> list[str]:
        """Blocks in bitmaps, stacks, inboxes, outgoing batches and callers' hands; those in a step's are not."""
        found = [p for s in self.slab.values() for p in s.free]
        for h in self.heap.values():
            found += [p for p in h.slot[: h.level] if p]
            found += h.out.blocks if h.out else ()
            b, seen = h.inbox, []
            while b not in (None, CLOSED, *seen):
                seen.append(b)
                found += b.blocks
                b = b.next
        return found + [p for caller in self.callers.values() for p in caller.holds]

    def invariant(self) -> None:
        if not self.gone:
            found = self.reachable()
            must(len(found) == len(set(found)), f"in two places: {sorted(p for p in set(found) if found.count(p) > 1)}")
        lists = [*self.page.orphans, *self.page.free, *(s for h in self.heap.values() for s in (*h.slabs, *h.units))]
        must(len(lists) == len(set(lists)), f"on two lists: {[str(s) for s in set(lists) if lists.count(s) > 1]}")
        for h in self.heap.values():
            if not h.claim.holder and not self.fork.thread:
                must(all(s.word[0] == h.id for s in h.slabs), f"{h} lists a slab that it does not own")
        orphans = [s for s in self.page.orphans if not self.hak_shard_of(s).holder]
        must(all(s.word[0] == ORPHAN for s in orphans), "the page heap lists an orphan that is none")
        free = [s for s in self.page.free if not self.hak_shard_of(s).holder]
        must(all(s.word == (NONE, 0) for s in free), "the page heap lists a free run that is none")

    def final(self) -> None:
        must(not any(k.holder for k in self.locks), f"held for ever: {[str(k) for k in self.locks if k.holder]}")
        found = self.reachable()
        must(len(found) == len(set(found)), f"in two places: {sorted(p for p in set(found) if found.count(p) > 1)}")
        stolen = self.ghost.live & {*found}
        must(not stolen, f"a thread that is gone held {sorted(stolen)}, and it is free")
        lost = {p for s in self.slab.values() for p in s.blocks} - {*found} - self.ghost.limbo
        must(not lost, f"lost: {sorted(lost)}")
        for h in self.heap.values():
            batches, b = 0, h.inbox
            while b not in (None, CLOSED):
                batches, b = batches + b.bytes, b.next
            must(h.inbox_bytes == batches, f"{h} has {batches} in its inbox, and counts {h.inbox_bytes}")
            waits = self.gone and h.running and h is not self.callers["forker"].heap
            must(not waits, f"{h} waits for a thread that is gone")
            must(h.running or not h.out, f"{h} has a batch to post and no thread")
            must(h.running or not h.slabs or h.kept == WAITING, f"{h} has slabs and no thread")
            must(
                h.running or h.kept == WAITING or not h.level, f"{h} has a stack, no thread, and does not wait for one"
            )
            must(h.running or h.kept != UNUSED, f"{h} waits for the first call of no thread")
            must(h.running or h.inbox == CLOSED, f"{h} has an inbox and no thread")
        if not self.gone:
            batches = sum(len(b.blocks) for b in self.batches)
            must(self.ghost.transit == batches, f"{batches} in transit, and the counts say {self.ghost.transit}")
