"""The ring between a heap and the learning thread, while the heap changes hands and the ring is full or empty."""

from __future__ import annotations

from interleavings import Step, System, Thread, must

# What a mutation may take out: the C function and the expression that has it.
PARTS = {
    "the event before the head": (
        "hak_ring_put_locked",
        "= *e; hak_store_release(&r->head, head + 1);",
    ),
    "the look at the tail before a put": ("hak_ring_put_locked", "if (head - hak_load_acquire(&r->tail) == HAK_RING)"),
    "the look at the head before a get": ("hak_ring_get", "if (hak_load_acquire(&r->head) == tail)"),
    "the copy before the tail": ("hak_ring_get", "*e = r->event[tail % HAK_RING]; hak_store_release("),
    "the claim round a put": ("hak_heap_refill", "hak_claim(h);"),
}


class Rings(System):
    """Threads that have one heap in turn put events, each a number; the learning thread gets what there is."""

    def __init__(self, without: str = "", owners: int = 2, events: int = 2, room: int = 2) -> None:
        super().__init__(without)
        self.room, self.events = room, events
        self.ring = self.record("ring", head=0, tail=0, dropped=0, event=(0,) * room, put=(), got=())
        self.heap = self.record("heap", claim="")
        for i in range(owners):
            self.threads[f"owner {i}"] = self.hak_heap_refill(f"owner {i}", i * events)
        self.threads["learner"] = self.hak_ace_drain_locked(owners * events)

    def hak_heap_refill(self, me: str, first: int) -> Thread:
        for i in range(self.events):
            if self.has("the claim round a put"):
                yield Step("hak_claim(h);", lambda: not self.heap.claim)
                self.heap.claim = me
            yield from self.hak_ring_put_locked(first + i + 1)
            yield "hak_unclaim(h);"
            self.heap.claim = ""

    def write(self, head: int, number: int) -> None:
        r = self.ring
        r.event = tuple(number if i == head % self.room else e for i, e in enumerate(r.event))

    def hak_ring_put_locked(self, number: int) -> Thread:
        r, early = self.ring, not self.has("the event before the head")
        yield "uint32_t head = r->head;"
        head = r.head
        yield "hak_load_acquire(&r->tail)"
        if head - r.tail == self.room and self.has("the look at the tail before a put"):
            r.dropped += 1
            return
        if not early:
            yield "r->event[head % HAK_RING] = *e;"
            self.write(head, number)
        yield "hak_store_release(&r->head, head + 1);"
        r.head = head + 1
        r.put = (*r.put, number)
        if early:
            yield "r->event[head % HAK_RING] = *e;"
            self.write(head, number)

    def hak_ace_drain_locked(self, turns: int) -> Thread:
        for _turn in range(turns):
            yield from self.hak_ring_get()

    def hak_ring_get(self) -> Thread:
        r, early = self.ring, not self.has("the copy before the tail")
        yield "uint32_t tail = r->tail;"
        tail = r.tail
        yield "hak_load_acquire(&r->head)"
        if r.head == tail and self.has("the look at the head before a get"):
            return
        number = 0
        if not early:
            yield "*e = r->event[tail % HAK_RING];"
            number = r.event[tail % self.room]
        yield "hak_store_release(&r->tail, tail + 1);"
        r.tail = tail + 1
        if early:
            yield "*e = r->event[tail % HAK_RING];"
            number = r.event[tail % self.room]
        r.got = (*r.got, number)
        must(r.got == r.put[: len(r.got)], f"{r.got} are read where {r.put} were put")

    def invariant(self) -> None:
        must(0 <= self.ring.head - self.ring.tail <= self.room, "more events stand in the ring than it has room for")

    def final(self) -> None:
        r = self.ring
        must(r.head == len(r.put) and r.tail == len(r.got), "an event is lost without a word")
        must(len(r.put) + r.dropped == sum(name != "learner" for name in self.threads) * self.events, "uncounted drops")
