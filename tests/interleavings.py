"""Explores every interleaving of a few threads, each a generator that stops before each step that others can see.

A model is a System: Records (structs) that the threads share, and the threads by name.  A thread yields the text of
its next step, or a Step that also says when it can be taken and what it may choose among; the code up to the next
yield is one atomic step.  What comes before the first yield runs at the start, and must touch nothing shared.

A state is what the records hold and, for each thread, where each generator of its chain of calls stands and what its
locals hold.  So that nothing is hidden: yields are statements of their own, and a `for` with a yield inside runs over
a name or a range, whose values differ (test_interleavings.py sees to it).
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Optional, Union


class Broken(Exception):
    """What a model says when a property does not hold."""


class Refuted(Exception):
    """A property that some interleaving breaks, with the shortest way there."""

    def __init__(self, message: str, trace: Sequence[str]) -> None:
        super().__init__("\n".join([message, *trace]))
        self.message, self.trace = message, list(trace)


def must(condition: object, message: str) -> None:
    """Breaks the model unless the condition holds."""
    if not condition:
        raise Broken(message)


class Step(NamedTuple):
    """The next step of a thread, which stands still until `when`; the yield returns one of `among`."""

    text: str
    when: Optional[Callable[[], Any]] = None
    among: Optional[Callable[[], Sequence[Any]]] = None


Thread = Generator[Union[str, Step], Any, Any]


class Record:
    """A struct that threads share; two of one name are the same."""

    def __init__(self, name: str, **fields: Any) -> None:
        self.__dict__.update(fields)
        self.name = name

    def __getattr__(self, name: str) -> Any:  # for type checkers: the fields are a model's own
        raise AttributeError(name)

    def __repr__(self) -> str:
        return self.name


class System:
    """What a model derives from.  `without` names the part that a mutation takes out."""

    name = "system"

    def __init__(self, without: str = "") -> None:
        self.without = without
        self.records: list[Record] = []
        self.threads: dict[str, Thread] = {}
        self.thread = ""  # the one whose step it is
        self.gone: frozenset[str] = frozenset()  # threads that take no step any more: fork's child has not got them

    def record(self, name: str, **fields: Any) -> Any:
        self.records.append(Record(name, **fields))
        return self.records[-1]

    def has(self, part: str) -> bool:
        return part != self.without

    def invariant(self) -> None:
        """Has to hold in every state."""

    def final(self) -> None:
        """Has to hold when all threads are done."""


PLAIN = frozenset((str, int, bool, type(None), frozenset))


def frozen(value: Any) -> Any:
    """A value as what a state is compared by."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is tuple:
        return value if all(type(each) in PLAIN for each in value) else tuple(map(frozen, value))
    if kind is dict:
        return tuple((key, frozen(each)) for key, each in sorted(value.items()))
    if isinstance(value, (Record, System)):
        return value.name
    raise TypeError(f"{value!r} in a state")


def function(thread: Thread) -> str:
    """The function that a thread is in."""
    inner: Any = thread
    while inner.gi_yieldfrom is not None:
        inner = inner.gi_yieldfrom
    return str(inner.gi_code.co_name)


def place(thread: Thread) -> tuple[Any, ...]:
    """Where a thread stands, from its outermost function to its innermost."""
    chain, inner = [], thread
    while inner is not None:
        frame: Any = inner.gi_frame
        chain.append((inner.gi_code, frame.f_lasti, *[(n, frozen(v)) for n, v in dict(frame.f_locals).items()]))
        inner = inner.gi_yieldfrom
    return tuple(chain)


Move = tuple[str, int]


class Run:
    """A system in the state that a schedule leads to."""

    def __init__(self, make: Callable[[], System], schedule: Sequence[Move] = ()) -> None:
        self.system = make()
        self.next: dict[str, Step] = {}
        for name in self.system.threads:
            self._advance(name, None)
        for move in schedule:
            self.take(move)

    def _advance(self, name: str, sent: Any) -> None:
        self.system.thread = name
        try:
            step = self.system.threads[name].send(sent)
            self.next[name] = Step(step) if isinstance(step, str) else step
        except StopIteration:
            self.next.pop(name, None)

    def _choices(self, name: str) -> Sequence[Any]:
        among = self.next[name].among
        return among() if among else (None,)

    def moves(self) -> list[Move]:
        return [
            (name, i)
            for name, step in self.next.items()
            if name not in self.system.gone and (step.when is None or step.when())
            for i in range(len(self._choices(name)))
        ]

    def take(self, move: Move) -> None:
        self._advance(move[0], self._choices(move[0])[move[1]])

    def close(self) -> None:
        """Lets go of the threads, which hold the system that holds them: explore runs without the cycle collector."""
        self.next.clear()
        self.system.threads.clear()

    def waiting(self) -> list[str]:
        return [f"{name} waits at {self.label(name)}" for name in self.next if name not in self.system.gone]

    def label(self, name: str) -> str:
        return f"{self.next[name].text} ({function(self.system.threads[name])})"

    def fields(self) -> dict[str, Any]:
        return {f"{r.name}.{f}": v for r in self.system.records for f, v in vars(r).items() if f != "name"}

    def key(self) -> Any:
        s = self.system
        places = [(name, place(s.threads[name])) for name in self.next if name not in s.gone]
        return tuple([tuple(map(frozen, vars(r).values())) for r in s.records]), tuple(places), s.gone


def shown(value: Any) -> str:
    return f"{{{', '.join(sorted(value))}}}" if isinstance(value, frozenset) else str(value)


def told(make: Callable[[], System], schedule: Sequence[Move]) -> list[str]:
    """A schedule as lines: the thread, its step, the C function that it stands for, and what changes by it."""
    lines, run = [], Run(make)
    for move in schedule:
        label, before = run.label(move[0]), {k: frozen(v) for k, v in run.fields().items()}
        try:
            run.take(move)
        except Broken:
            lines.append(f"  {move[0]}: {label}")
            break
        changes = [f"{k} = {shown(v)}" for k, v in run.fields().items() if frozen(v) != before.get(k)]
        lines.append("  " + "; ".join([f"{move[0]}: {label}", *changes]))
    return lines


class Explored(NamedTuple):
    states: int
    steps: frozenset[tuple[str, str]]  # function and text of each step that was ever taken


def explore(make: Callable[[], System], most: int = 200_000) -> Explored:
    """Goes through all states, nearest first.  Raises Refuted if one of them breaks a property, or is a deadlock."""
    gc.disable()  # it would look through all states again and again
    try:
        return _explore(make, most)
    finally:
        gc.enable()


def _explore(make: Callable[[], System], most: int) -> Explored:
    run = Run(make)
    queue: deque[tuple[tuple[Move, ...], Run]] = deque([((), run)])
    seen = {run.key()}
    steps = set()

    def refute(problem: object, schedule: Sequence[Move]) -> Refuted:
        return Refuted(str(problem), told(make, schedule))

    while queue:
        schedule, run = queue.popleft()
        moves = run.moves()
        if not moves:
            if run.waiting():
                raise refute("deadlock: " + ", ".join(run.waiting()), schedule)
            try:
                run.system.final()
            except Broken as problem:
                raise refute(problem, schedule) from None
        for i, move in enumerate(moves):
            here = run if i == len(moves) - 1 else Run(make, schedule)  # the last may use the state up
            path = (*schedule, move)
            steps.add((function(here.system.threads[move[0]]), here.next[move[0]].text))
            try:
                here.take(move)
                here.system.invariant()
            except Broken as problem:
                raise refute(problem, path) from None
            key = here.key()
            if key in seen:
                here.close()
                continue
            if len(seen) >= most:
                raise RuntimeError(f"more than {most} states")
            seen.add(key)
            queue.append((path, here))
    return Explored(len(seen), frozenset(steps))
