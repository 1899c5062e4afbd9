"""hakmem's protocols between threads hold in every interleaving of small models, which follow the C code's text."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from _helpers import ROOT
from interleavings import Explored, Refuted, Step, System, Thread, explore, must
from models import bigcache, heaps, live, locks, pages, rings
from models.bigcache import Kept
from models.heaps import Heaps
from models.live import Commands, Publication
from models.locks import Boot, Futex
from models.pages import Allowance, Pages
from models.rings import Rings

MODELS = (heaps, locks, pages, bigcache, rings, live)
ENVIRONMENT = {"interrupt", "collect", "copy", "act", "ask", "read"}  # of the system, the test or a reader, not of C


# ---- the checker itself, on protocols that are known to be broken or sound


class Counter(System):
    """Two threads add to a counter, with or without a lock."""

    def __init__(self, without: str = "") -> None:
        super().__init__(without)
        self.c = self.record("counter", value=0, holder="")
        for name in ("one", "two"):
            self.threads[name] = self.add(name)

    def add(self, me: str) -> Thread:
        if self.has("the lock"):
            yield Step("lock", lambda: not self.c.holder)
            self.c.holder = me
        yield "load"
        value = self.c.value
        yield "store"
        self.c.value = value + 1
        self.c.holder = ""

    def final(self) -> None:
        must(self.c.value == 2, f"the counter is {self.c.value}")


class Philosophers(System):
    """Each thread takes two locks, all in one order or not."""

    def __init__(self, without: str = "") -> None:
        super().__init__(without)
        self.forks = tuple(self.record(f"fork {i}", holder="") for i in range(3))
        for i in range(3):
            pair = (i, (i + 1) % 3)
            self.threads[f"{i}"] = self.eat(f"{i}", tuple(sorted(pair)) if self.has("the order") else pair)

    def eat(self, me: str, pair: tuple[int, ...]) -> Thread:
        for i in pair:
            fork = self.forks[i]
            yield Step(f"take {i}", lambda fork=fork: not fork.holder)
            fork.holder = me
        for i in pair:
            self.forks[i].holder = ""


class Stack(System):
    """A stack by compare-and-swap: one thread pops while another pops two and pushes the first back."""

    def __init__(self, without: str = "") -> None:
        super().__init__(without)
        self.nodes = tuple(self.record(f"node {i}", next=None, owner="") for i in range(2))
        self.nodes[0].next = self.nodes[1]
        self.top = self.record("top", node=self.nodes[0], version=0)
        self.threads["popper"] = self.pop("popper")
        self.threads["juggler"] = self.juggle()

    def pop(self, me: str) -> Thread:
        while True:
            yield "load the top"
            node, version = self.top.node, self.top.version
            if not node:
                return None
            yield "load its next"
            following = node.next
            yield "compare and swap"
            if self.top.node is node and (self.top.version == version or not self.has("the version")):
                self.top.node, self.top.version = following, self.top.version + 1
                must(not node.owner, f"{node} is popped by {me} while {node.owner} has it")
                node.owner = me
                return node

    def juggle(self) -> Thread:
        first = yield from self.pop("juggler")
        yield from self.pop("juggler")
        if first:
            yield "push"
            first.owner, first.next = "", self.top.node
            self.top.node, self.top.version = first, self.top.version + 1

    def invariant(self) -> None:
        must(not self.top.node or not self.top.node.owner, f"{self.top.node} is on the stack, and is owned")


class Waiter(System):
    """A thread waits for a flag that another may set before it looks."""

    def __init__(self, without: str = "") -> None:
        super().__init__(without)
        self.flag = self.record("flag", set=False, asleep=False)
        self.threads["waiter"] = self.wait()
        self.threads["setter"] = self.set()

    def wait(self) -> Thread:
        if self.has("the look with the sleep in one step"):
            yield Step("sleep until set", lambda: self.flag.set)
            return
        yield "look"
        if not self.flag.set:
            yield "sleep"
            self.flag.asleep = True
            yield Step("wake", lambda: not self.flag.asleep)

    def set(self) -> Thread:
        yield "set and wake"
        self.flag.set, self.flag.asleep = True, False


TOYS = {
    "a counter without its lock": (Counter, "the lock", "the counter is 1"),
    "locks taken in a circle": (Philosophers, "the order", "deadlock: 0 waits at take 1"),
    "a stack whose top comes back": (Stack, "the version", "is owned"),
    "a wake-up before the sleep": (Waiter, "the look with the sleep in one step", "deadlock: waiter waits at wake"),
}


@pytest.mark.parametrize("toy", TOYS)
def test_the_checker_finds_the_fault_of(toy: str) -> None:
    make, part, message = TOYS[toy]
    explore(make)  # with the part it holds
    with pytest.raises(Refuted) as refuted:
        explore(lambda: make(part))
    assert message in refuted.value.message
    assert refuted.value.trace


def test_a_trace_is_the_shortest_and_says_who_did_what() -> None:
    with pytest.raises(Refuted) as refuted:
        explore(lambda: Counter("the lock"))
    assert refuted.value.trace == [
        "  one: load (add)",
        "  two: load (add)",
        "  one: store (add); counter.value = 1",
        "  two: store (add)",
    ]


def test_the_number_of_states_is_that_of_all_interleavings() -> None:
    class Two(System):
        def __init__(self) -> None:
            super().__init__()
            self.at = self.record("at", a=0, b=0)
            self.threads = {"a": self.walk("a"), "b": self.walk("b")}

        def walk(self, me: str) -> Thread:
            for _step in range(3):
                yield "walk"
                setattr(self.at, me, getattr(self.at, me) + 1)

    assert explore(Two).states == 4 * 4  # each thread may have taken 0 to 3 steps


def test_what_the_checker_cannot_compare_is_refused() -> None:
    class Hidden(System):
        def __init__(self) -> None:
            super().__init__()
            self.record("hidden", values=[])

    with pytest.raises(TypeError, match="in a state"):
        explore(Hidden)


# ---- scenarios: what threads do at the same time


def scenario(heap: dict, own: dict[int, str], *callers: tuple, collect: bool = True) -> Callable[[str], System]:
    """Callers: name, operations, keywords of Heaps.caller, and "dead" for a thread that is past its end."""

    def make(without: str) -> System:
        system = Heaps(without, **heap)
        for owner, slabs in own.items():
            system.owns(owner, *slabs)
        for name, operations, keywords in callers:
            dead = keywords.get("dead")
            system.caller(name, *operations, **{k: v for k, v in keywords.items() if k != "dead"})
            if dead:
                system.callers[name].heap = "dead"
        if collect:
            system.then_collect()
        return system

    return make


def forks(
    pages_in_order: tuple[str, ...], *other: tuple, end: str = "child", handlers: tuple = ()
) -> Callable[[str], System]:
    return scenario(
        {"blocks": 3, "torn": pages_in_order},
        {5: "A", 4: "B"},
        ("forker", [("fork_with", end, handlers)], {"heap": 4}),
        ("other", [*other, ("malloc",)], {"heap": 5, "holds": "A0 B0", "stack": "A1"}),
    )


EXIT, MALLOC, TRIM, DEAD = ("exit",), ("malloc",), ("trim",), {"dead": True}


def free(p: str) -> tuple[str, str]:
    return ("free", p)


HOLDS: dict[str, Callable[[str], System]] = {
    "a poster meets the end of the owner's thread, and another thread takes the heap struct over": scenario(
        {"heaps": (4, 5, 6), "made": 2},
        {4: "A"},
        ("owner", [EXIT], {"heap": 4, "stack": "A1"}),
        ("poster", [free("A0")], {"heap": 5, "holds": "A0"}),
        ("newcomer", [MALLOC], {}),
    ),
    "two posters meet at an inbox whose owner drains it and ends": scenario(
        {"heaps": (4, 5, 6), "blocks": 3},
        {4: "A"},
        ("owner", [MALLOC, EXIT], {"heap": 4}),
        ("poster 1", [free("A0")], {"heap": 5, "holds": "A0"}),
        ("poster 2", [free("A1")], {"heap": 6, "holds": "A1"}),
    ),
    "a helper disowns a heap while another posts to it and its thread ends": scenario(
        {"heaps": (4, 5, 6), "blocks": 3},
        {4: "A"},
        ("owner", [EXIT], {"heap": 4}),
        ("poster", [free("A0")], {"heap": 5, "holds": "A0"}),
        ("helper", [free("A1"), ("help", 4)], {"heap": 6, "holds": "A1"}),
    ),
    "an orphan is adopted while its blocks are freed in a batch and one by one": scenario(
        {"blocks": 3, "slabs": "A"},
        {0: "A"},
        ("adopter", [MALLOC, EXIT], {"heap": 4}),
        ("dying", [free("A0")], {"holds": "A0", **DEAD}),
        ("sender", [free("A1")], {"heap": 5, "holds": "A1"}),
    ),
    "a thread ends with well-used slabs, a poster frees a block of them, and a newcomer takes the heap over": scenario(
        {"keep": True, "heaps": (4, 5, 6), "made": 2, "blocks": 3},
        {4: "A"},
        ("owner", [EXIT], {"heap": 4, "holds": "A2", "stack": "A1"}),
        ("poster", [free("A0")], {"heap": 5, "holds": "A0"}),
        ("newcomer", [MALLOC], {}),
    ),
    "a helper breaks up a heap that waits while a newcomer takes it over": scenario(
        {"keep": True, "heaps": (4, 5, 6), "made": 2, "blocks": 3},
        {4: "AB"},
        ("owner", [EXIT], {"heap": 4, "stack": "B0"}),
        ("helper", [("help", 4)], {"heap": 5}),
        ("newcomer", [free("A0"), free("A2")], {"holds": "A0 A2"}),
    ),
    "a helper breaks up a heap that waits while a newcomer allocates from its stack": scenario(
        {"keep": True, "heaps": (4, 5, 6), "made": 2},
        {4: "AB"},
        ("owner", [EXIT], {"heap": 4, "holds": "A0", "stack": "B0 A1"}),
        ("helper", [("help", 4)], {"heap": 5}),
        ("newcomer", [MALLOC, MALLOC], {}),
    ),
    "a poster finds the inbox of a heap full that waits by then": scenario(
        {"keep": True, "blocks": 3, "slabs": "A", "full": 0, "alone": 1},
        {4: "A"},
        ("owner", [EXIT], {"heap": 4, "holds": "A2", "stack": "A1"}),
        ("poster", [free("A0")], {"heap": 5, "holds": "A0"}),
    ),
    "a thread with little wants the heap of one that has ended, and so does one that begins": scenario(
        {"keep": True, "heaps": (4, 5, 6), "made": 2, "blocks": 3, "slabs": "A"},
        {4: "A"},
        ("owner", [EXIT], {"heap": 4, "holds": "A0"}),
        ("one", [MALLOC], {"heap": 5}),
        ("newcomer", [MALLOC], {}),
        collect=False,
    ),
    "a dying thread frees a block whose owner ends": scenario(
        {"slabs": "A"},
        {4: "A"},
        ("owner", [EXIT], {"heap": 4, "holds": "A1"}),
        ("dying", [free("A0")], {"holds": "A0", **DEAD}),
    ),
    "a heap has a unit at hand while another thread ends and a third looks for memory": scenario(
        {"hand": 1, "top": 0},
        {4: "A", 5: "B"},
        ("owner", [free("A0"), free("A1"), ("malloc", 2), EXIT], {"heap": 4, "holds": "A0 A1"}),
        ("other", [free("B0"), MALLOC, TRIM], {"heap": 5, "holds": "B0"}),
    ),
    "two heaps want one orphan": scenario(
        {"blocks": 3},
        {0: "A"},
        ("adopter 1", [MALLOC], {"heap": 4}),
        ("adopter 2", [MALLOC], {"heap": 5}),
        ("dying", [free("A0")], {"holds": "A0", **DEAD}),
    ),
    "an orphan empties, and its units become a slab of another class": scenario(
        {"heaps": (4,), "slabs": "A"},
        {0: "A"},
        ("maker", [("malloc", 2)], {"heap": 4}),
        ("dying 1", [free("A0")], {"holds": "A0", **DEAD}),
        ("dying 2", [free("A1")], {"holds": "A1", **DEAD}),
    ),
    "an owner loses its slab with a block in its stack, another adopts it, and the owner goes on": scenario(
        {"heaps": (4, 5, 6), "blocks": 4, "top": 1, "full": 0, "alone": 1},
        {4: "A"},
        ("owner", [free("A0"), MALLOC], {"heap": 4, "holds": "A0", "stack": "A1"}),
        ("poster", [free("A2")], {"heap": 5, "holds": "A2"}),
        ("adopter", [MALLOC], {"heap": 6}),
    ),
    "an owner loses its slab twice": scenario(
        {"heaps": (4, 5, 6), "blocks": 4, "top": 1, "full": 0, "alone": 1},
        {4: "A"},
        ("owner", [MALLOC, free("A0"), EXIT], {"heap": 4, "holds": "A0"}),
        ("poster 1", [free("A2")], {"heap": 5, "holds": "A2"}),
        ("poster 2", [free("A3")], {"heap": 6, "holds": "A3"}),
        collect=False,
    ),
    "an owner loses its slabs twice while its stack overflows": scenario(
        {"heaps": (4, 5, 6), "slabs": "A", "blocks": 4, "top": 1, "full": 0, "alone": 1},
        {4: "A"},
        ("owner", [free("A0")], {"heap": 4, "holds": "A0", "stack": "A1"}),
        ("poster 1", [free("A2")], {"heap": 5, "holds": "A2"}),
        ("poster 2", [free("A3")], {"heap": 6, "holds": "A3"}),
    ),
    "an owner loses its slabs while its stack overflows and its thread ends": scenario(
        {"blocks": 4, "slabs": "A", "top": 1, "full": 0, "alone": 1},
        {4: "A"},
        ("owner", [free("A0"), EXIT], {"heap": 4, "holds": "A0", "stack": "A1"}),
        ("poster", [free("A2")], {"heap": 5, "holds": "A2"}),
    ),
    "an owner loses its slab, and its stack's capacity falls": scenario(
        {"blocks": 4, "slabs": "A", "full": 0, "alone": 1},
        {4: "A"},
        ("owner", [("sweep",), free("A0"), ("sweep",)], {"heap": 4, "holds": "A0", "stack": "A1"}),
        ("poster", [free("A2")], {"heap": 5, "holds": "A2"}),
    ),
    "an owner loses its slab and ends with strays in a batch": scenario(
        {"blocks": 4, "slabs": "A", "top": 1, "full": 0, "alone": 1, "batch": 2},
        {4: "A"},
        ("owner", [EXIT], {"heap": 4, "stack": "A1"}),
        ("poster", [free("A2"), free("A3")], {"heap": 5, "holds": "A2 A3"}),
    ),
    "a thread looks at a block's owner, and then takes that owner's heap struct over": scenario(
        {"heaps": (4,), "slabs": "A", "top": 1},
        {4: "A"},
        ("owner", [EXIT], {"heap": 4}),
        ("newcomer", [free("A0"), EXIT], {"holds": "A0"}),
    ),
    "posters do an idle owner's work, one of them with a block that a third heap has by now": scenario(
        {"heaps": (4, 5, 6, 7), "blocks": 3, "slabs": "A", "full": 0, "alone": 1},
        {4: "A"},
        ("owner", [], {"heap": 4}),
        ("adopter", [MALLOC], {"heap": 6}),
        ("poster 1", [free("A0")], {"heap": 5, "holds": "A0"}),
        ("poster 2", [free("A1")], {"heap": 7, "holds": "A1"}),
        collect=False,
    ),
    "an owner, a poster that finds the inbox full, a trim and a fork take their claims": scenario(
        {"blocks": 3, "slabs": "A", "top": 1, "full": 0, "alone": 1},
        {4: "A"},
        ("owner", [free("A0"), TRIM], {"heap": 4, "holds": "A0", "stack": "A1"}),
        ("poster", [free("A2")], {"heap": 5, "holds": "A2"}),
        ("forker", [("fork_with", "parent", ())], DEAD),
    ),
    "a thread makes its heap in a fork handler while another trims": scenario(
        {"made": 1},
        {},
        ("forker", [("fork_with", "parent", (MALLOC,))], {}),
        ("trimmer", [TRIM], DEAD),
    ),
    "fork copies indices before stacks while their owner frees": forks(("stacks' indices", "stacks"), free("A0")),
    "fork copies stacks before indices while their owner frees": forks(("stacks", "stacks' indices"), free("A0")),
    "fork copies batches before inboxes while a batch is posted": forks(
        ("batches", "outgoing batches", "inboxes"), free("B0")
    ),
    "fork copies inboxes before batches while a batch is posted": forks(
        ("inboxes", "outgoing batches", "batches"), free("B0")
    ),
    "a child's handler allocates before hakmem's own has run": forks(
        ("batches", "inboxes"), free("B0"), handlers=(MALLOC,)
    ),
    "fork's child meets a thread in its slow paths and at its end": scenario(
        {"blocks": 3},
        {5: "A"},
        ("forker", [("fork_with", "child", ())], {"heap": 4}),
        ("other", [free("A0"), EXIT], {"heap": 5, "holds": "A0", "stack": "A1 A2"}),
    ),
    "three threads take one lock": Futex,
    "two threads take one lock twice, and a signal ends a sleep": lambda without: Futex(without, 2, 2, signal=True),
    "three threads take one lock, and a signal ends a sleep": lambda without: Futex(without, 3, signal=True),
    "three threads make the first call together": Boot,
    "a run is purged while its neighbours are freed and another thread takes a run": Pages,
    "two threads free all that they have": Allowance,
    "three threads free all that they have": lambda without: Allowance(without, freers=3, units=1),
    "two threads purge": lambda without: Pages(without, purgers=2),
    "an orphan of another shard is adopted while its blocks are freed": scenario(
        {"shards": 2},
        {0: "B"},
        ("adopter", [MALLOC], {"heap": 4}),
        ("dying", [free("B0")], {"holds": "B0", **DEAD}),
        ("sender", [free("B1")], {"heap": 5, "holds": "B1"}),
    ),
    "a batch has orphans of two shards, one of which is adopted": scenario(
        {"shards": 2, "batch": 2},
        {0: "AB"},
        ("adopter", [MALLOC], {"heap": 5}),
        ("sender", [free("A0"), free("B0")], {"heap": 4, "holds": "A0 B0"}),
    ),
    "a thread with slabs of two shards ends beside a fork": scenario(
        {"shards": 2},
        {4: "AB"},
        ("owner", [EXIT], {"heap": 4, "holds": "A0 B0"}),
        ("taker", [MALLOC, EXIT], {"heap": 5}),
        ("forker", [("fork_with", "parent", ())], DEAD),
        collect=False,
    ),
    "heaps take runs of each other's shards": scenario(
        {"shards": 2, "slabs": "ABC", "heaps": (4, 5), "blocks": 1},
        {4: "B"},
        ("taker 1", [MALLOC, EXIT], {"heap": 4}),
        ("taker 2", [MALLOC, MALLOC], {"heap": 5}),
    ),
    "a superslab changes its shard while a unit beside it is freed": lambda without: Pages(
        without, shards=2, purgers=0, freers="1", takers=(1,), free=((2, 2),)
    ),
    "a superslab that is purged does not change its shard": lambda without: Pages(
        without, shards=2, freers="", takers=(1,), free=((0, 1), (2, 2))
    ),
    "a superslab changes its shard while a thread looks at what was there": lambda without: Pages(
        without, shards=2, purgers=0, freers="2", takers=(1,), lookers="2", free=((3, 1),)
    ),
    "two threads without a run want one of each other's shard": lambda without: Pages(
        without, shards=2, purgers=0, freers="03", takers=(0, 1), free=((1, 1), (2, 1)), of=(0, 1)
    ),
    "a run beside a used unit is taken where it is while that unit is freed": lambda without: Pages(
        without, shards=2, freers="0", takers=(1,), free=((1, 2),)
    ),
    "the shards become more beside an allocation, a purge and a fork": lambda without: Pages(
        without, freers="1", takers=(1,), free=((2, 2),), growers=1, forkers=1
    ),
    "a run is freed, kept, taken again, evicted, made anew, and its neighbour grows": Kept,
    "two threads take and two purge a kept run": lambda without: Kept(without, 1, takers=2, purgers=2, growers=0),
    "two threads free one run while it is evicted": lambda without: Kept(without, freers=2, takers=0, makers=0),
    "two threads publish what another process reads": Publication,
    "one reader waits and one gives up while two threads obey": Commands,
    "a reader is killed before another asks": lambda without: Commands(without, ("is killed", "waits")),
    "two readers give up": lambda without: Commands(without, ("gives up", "gives up"), threads=1),
    "a reader is killed, one gives up and one waits": lambda without: Commands(
        without, ("is killed", "gives up", "waits"), threads=1
    ),
    "a heap changes hands while ACE reads its ring": Rings,
    "a ring is full before ACE comes": lambda without: Rings(without, owners=1, events=3, room=1),
}


@cache
def explored(name: str) -> Explored:
    return explore(lambda: HOLDS[name](""))


@pytest.mark.parametrize("name", HOLDS)
def test_all_properties_hold_when(name: str) -> None:
    assert explored(name).states > 10


# ---- mutations: each part of the protocols is there for a reason

REUSE = "a poster meets the end"
TWO = "two posters meet"
BREAKS = "a helper breaks up a heap that waits while a newcomer "
FORK_LIVE = "fork copies indices before"
FORK_BATCH = "fork copies batches before"
REFUTED_BY: dict[str, tuple[str, str]] = {  # the part taken out: the scenario that needs it, and what breaks
    "CLOSED in the loop of a post": (REUSE, "lost: ['A0']"),
    "the subtraction where an inbox is closed": (REUSE, "has 0 in its inbox, and counts 1"),
    "the look at the clock where a push fails": (TWO, "ceases to be empty with an old stamp"),
    "the exchange of a drain": (REUSE, "lost: ['A0']"),
    "the closing of the inbox at a thread's end": ("a thread looks at", "has an inbox and no thread"),
    "the look at each block's owner in a drain": ("an owner loses its slabs twice", "that it does not own"),
    "the rerouting of strays after a drain": ("a helper disowns", "lost: ['A0']"),
    "the second posting at a thread's end": ("an owner loses its slab and ends", "has a batch to post and no thread"),
    "the re-check under the page heap's lock": ("two heaps want", "as an orphan, which it is not"),
    "the re-check under the claim": ("a dying thread frees", "that it does not own"),
    "the look at the owner of a block in a batch of orphans": (REUSE, "as an orphan, which it is not"),
    "the page heap's lock of an adoption": ("two heaps want", "on two lists: ['A']"),
    "the removal of an adopted slab from its list": ("two heaps want", "on two lists: ['A']"),
    "the words of a disowned slab": ("an owner loses its slab and ends", "lists an orphan that is none"),
    "the lost flag": ("an owner loses its slab, and its", "that it does not own"),
    "the second look at the lost flag": ("an owner loses its slab twice", "that it does not own"),
    "the sorting out before a flush": ("an owner loses its slab and ends", "that it does not own"),
    "the sorting out before a capacity falls": ("an owner loses its slab, and its", "that it does not own"),
    "the second look at a block's owner in an overflow": ("an owner loses its slabs while", "that it does not own"),
    "the claim given back before strays are rerouted": ("posters do an idle", "claim 6 is taken while claim 4 is held"),
    "the claim given back before strays are sent": ("an owner loses its slab with", "is taken while claim 4 is held"),
    "the look whether an idle heap waits before it is disowned": ("a poster finds the inbox", "has a stack, no thread"),
    "the claim of a thread that takes a waiting heap over": (BREAKS + "takes it over", "another thread flushes"),
    "the look whether a heap waits before its stacks are flushed": (BREAKS + "takes it over", "another thread flushes"),
    "the removal of a traded heap from those that wait": ("a thread with little", "has two threads"),
    "the claims before the page heap in fork": ("an owner, a poster", "is taken while"),
    "the order of the claims in fork": ("an owner, a poster", "claim 4 is taken while claim 5 is held"),
    "the claims in fork": ("an owner, a poster", "is needed, and nobody holds it"),
    "the emptied inboxes of a child": (FORK_BATCH, "recycled twice"),
    "the emptied inbox bytes of a child": (FORK_BATCH, "in its inbox, and counts"),
    "the dropped stacks of a child": (FORK_LIVE, "a thread that is gone held ['A0']"),
    "the dropped batches of a child": (FORK_BATCH, "recycled twice"),
    "the retired heaps of a child": ("fork's child meets", "waits for a thread that is gone"),
    "the renewed claims of a child": ("fork's child meets", "deadlock: forker waits"),
    "the patience of a drain in fork": ("a child's handler", "recycled twice"),
    "the claim that a heap made in fork is born with": ("a thread makes its heap", "is where claim 5 is needed"),
    "the 2 that a waiter leaves for those behind it": ("three threads take one lock", "deadlock: thread"),
    "the wake-up of a sleeper": ("three threads take one lock", "deadlock: thread"),
    "the comparison before the sleep": ("three threads take one lock", "deadlock: thread"),
    "the compare-and-swap of the first caller": ("three threads make", "before the classes are set up"),
    "the wait of the second caller": ("three threads make", "before the classes are set up"),
    "the mark on a purged run's first unit": ("a run is purged", "a list that it is not on"),
    "the mark on a purged run's last unit": ("a run is purged", "a list that it is not on"),
    "the removal of a purged run from the free ones": ("a run is purged", "is purged while taker 0 uses it"),
    "the lock that lets one thread purge at a time": ("two threads purge", "purge together"),
    "the note of a purge that was wanted": ("two threads free all", "units are kept"),
    "the second try after that note": ("two threads free all", "units are kept"),
    "the look at that note after a purge": ("two threads free all", "units are kept"),
    "the shard of a block in a batch of orphans": ("a batch has orphans of two shards", "is needed, and nobody holds"),
    "the change of locks in a disowning": ("a thread with slabs of two shards", "is needed, and"),
    "the look at a neighbour's shard": ("a superslab changes its shard while a unit", "a list that it is not on"),
    "the second look at a unit's shard": ("a superslab changes its shard while a thread", "under the lock of a shard"),
    "the order of two shards' locks": ("two threads without a run", "shard 0 is locked while shard 1 is"),
    "the giver's lock where a superslab moves": ("the shards become more", "moves while forker 0 is at it"),
    "the purge lock of a growth": ("the shards become more", "shard 1 is needed, and does not hold it"),
    "the compare-and-swap of a large free": ("two threads free one run", "put into BigCache twice"),
    "the word of a run that is live again": ("a run is freed, kept", "is told that it is free"),
    "the key that a run loses with its place": ("a run is freed, kept", "leaves BigCache that is not in it"),
    "the key that a new run has not got": ("a run is freed, kept", "leaves BigCache that is not in it"),
    "the look at the key of a kept neighbour": ("a run is freed, kept", "leaves BigCache that is not in it"),
    "BigCache's lock in an eviction": ("two threads take and two purge", "leaves BigCache that is not in it"),
    "the number that is odd while the page is written": ("two threads publish", "passes for one"),
    "the number that is even again only after that": ("two threads publish", "passes for one"),
    "the lock of those who publish": ("two threads publish", "passes for one"),
    "the look that is cleared before the number is read": ("one reader waits", "deadlock: reader 0 waits"),
    "the compare-and-swap that takes a command": ("one reader waits", "is obeyed, and was withdrawn"),
    "the look whether the command is the next": ("one reader waits", "is obeyed, and was withdrawn"),
    "the compare-and-swap that withdraws a command": ("one reader waits", "is obeyed, and was withdrawn"),
    "the word that says it is over only when it is": ("one reader waits", "is done before it is over"),
    "the event before the head": ("a ring is full", "are read where"),
    "the look at the tail before a put": ("a ring is full", "more events stand in the ring"),
    "the look at the head before a get": ("a ring is full", "are read where"),
    "the copy before the tail": ("a ring is full", "are read where"),
    "the claim round a put": ("a heap changes hands", "are read where"),
}
PARTS = {part: place for module in MODELS for part, place in module.PARTS.items()}


def scenario_that_begins(start: str) -> str:
    return next(name for name in HOLDS if name.startswith(start))


@pytest.mark.parametrize("part", PARTS)
def test_something_breaks_without(part: str) -> None:
    start, message = REFUTED_BY[part]
    with pytest.raises(Refuted) as refuted:
        explore(lambda: HOLDS[scenario_that_begins(start)](part))
    assert message in refuted.value.message, str(refuted.value)


# ---- the models follow the C code: what they name is there


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@cache
def bodies() -> dict[str, str]:
    """The C functions by name, each from its name to its closing brace, with single spaces."""
    text = (ROOT / "_hakmem_backend.c").read_text()
    found = {m[1]: squeezed(m[0]) for m in re.finditer(r"^#define (hak_\w+)\(.*", text, re.MULTILINE)}
    for match in re.finditer(
        r"^(?:static|HAK_)[^;{}=#]*?\b(hak_\w+)\([^;{}]*?\)(?:\s*/\*.*?\*/)?\s*\{", text, re.MULTILINE
    ):
        depth, at = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        found.setdefault(match[1], squeezed(text[match.start(1) : at]))  # the first form, not the one for helgrind
    return found


def functions(module: object) -> list[ast.FunctionDef]:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def texts(function: ast.FunctionDef) -> list[str]:
    """The texts of a function's own steps."""
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.Yield):
            value = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
            found.append(value.value if isinstance(value, ast.Constant) else "?")
    return found


STEPS = {(f.name, text) for module in MODELS for f in functions(module) for text in texts(f)}


@pytest.mark.parametrize("name", sorted({f.name for m in MODELS for f in functions(m) if f.name.startswith("hak_")}))
def test_the_steps_that_stand_for_c_are_in(name: str) -> None:
    assert name in bodies(), "no such function"
    for step in sorted(text for function, text in STEPS if function == name):
        assert squeezed(step) in bodies()[name], step


@pytest.mark.parametrize("part", PARTS)
def test_c_has(part: str) -> None:
    name, expression = PARTS[part]
    assert squeezed(expression) in bodies()[name], expression


def test_only_the_environment_takes_steps_that_are_not_c() -> None:
    assert {name for name, _text in STEPS if not name.startswith("hak_")} == ENVIRONMENT


def test_every_step_of_the_models_is_taken_in_some_interleaving() -> None:
    taken = {step for name in HOLDS for step in explored(name).steps}
    assert {step for step in STEPS - taken if step[0] not in ENVIRONMENT} == set()


@pytest.mark.parametrize("module", MODELS, ids=lambda module: module.__name__)
def test_no_state_is_hidden_in(module: object) -> None:
    """What a generator has on its stack at a yield is no part of a state, so there may be nothing there that counts."""
    for function in functions(module):
        for node in ast.walk(function):
            inside = [n for n in ast.walk(node) if isinstance(n, (ast.Yield, ast.YieldFrom))]
            if not inside:
                continue
            if isinstance(node, ast.For):
                plain = isinstance(node.iter, (ast.Name, ast.Attribute)) or (
                    isinstance(node.iter, ast.Call) and getattr(node.iter.func, "id", "") == "range"
                )
                assert plain, f"{function.name}, line {node.lineno}: for over an expression"
            if isinstance(node, ast.expr) and node not in inside:
                raise AssertionError(f"{function.name}, line {node.lineno}: a yield inside an expression")
