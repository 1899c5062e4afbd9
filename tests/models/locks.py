"""The lock itself, word by word, and the first call's set-up."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from interleavings import Step, System, Thread, must

# What a mutation may take out: the C function and the expression that has it.
PARTS = {
    "the 2 that a waiter leaves for those behind it": ("hak_lock_wait", "while (hak_exchange(&l->word, 2u) != 0)"),
    "the wake-up of a sleeper": ("hak_lock_let_go", "FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0"),
    "the comparison before the sleep": ("hak_lock_wait", "FUTEX_WAIT_PRIVATE, 2"),
    "the compare-and-swap of the first caller": ("hak_boot_init_slow", "if (!hak_cas(&hak_boot.ready, &zero, 1u))"),
    "the wait of the second caller": ("hak_boot_init_slow", "while (hak_load_acquire(&hak_boot.ready) != 2)"),
}


class Futex(System):
    """Threads take one lock in turn, and a signal may end a sleep early."""

    def __init__(
        self, without: str = "", threads: int = 3, rounds: int = 1, spins: int = 1, signal: bool = False
    ) -> None:
        super().__init__(without)
        self.lock = self.record("lock", word=0, sleepers=frozenset(), inside=frozenset())
        self.rounds, self.spins = rounds, spins
        for i in range(threads):
            self.threads[f"thread {i}"] = self.work(f"thread {i}")
        if signal:
            self.threads["signal"] = self.interrupt()

    def work(self, me: str) -> Thread:
        for _round in range(self.rounds):
            yield from self.hak_lock_uncounted(me)
            self.lock.inside |= {me}
            yield from self.hak_lock_let_go(me)

    def interrupt(self) -> Thread:
        """EINTR, or a wake-up that nobody sent, for one of the sleepers or for none."""
        sleeper = yield Step("a signal", among=lambda: ("", *sorted(self.lock.sleepers)))
        self.lock.sleepers -= {sleeper}

    def hak_lock_uncounted(self, me: str) -> Thread:
        got = yield from self.hak_lock_grab()
        if not got:
            yield from self.hak_lock_wait(me)

    def hak_lock_grab(self) -> Generator[Any, Any, bool]:
        yield "hak_cas(&l->word, &zero, 1u)"
        if self.lock.word != 0:
            return False
        self.lock.word = 1
        return True

    def hak_lock_wait(self, me: str) -> Thread:
        k = self.lock
        for _spin in range(self.spins):
            yield "hak_load(&l->word) == 0"
            if k.word != 0:
                continue
            got = yield from self.hak_lock_grab()
            if got:
                return
        while True:
            yield "hak_exchange(&l->word, 2u) != 0"
            was = k.word
            k.word = 2 if was or self.has("the 2 that a waiter leaves for those behind it") else 1
            if was == 0:
                return
            yield "syscall(SYS_futex, &l->word, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0)"
            if k.word == 2 or not self.has("the comparison before the sleep"):
                k.sleepers |= {me}
                yield Step("errno = saved", lambda: me not in k.sleepers)

    def hak_lock_let_go(self, me: str) -> Thread:
        k = self.lock
        yield "hak_exchange(&l->word, 0u) == 2"
        k.inside -= {me}
        was, k.word = k.word, 0
        if was == 2:
            woken = yield Step(
                "syscall(SYS_futex, &l->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0)",
                among=lambda: sorted(k.sleepers) or ("",),
            )
            if self.has("the wake-up of a sleeper"):
                k.sleepers -= {woken}

    def invariant(self) -> None:
        must(len(self.lock.inside) <= 1, f"{sorted(self.lock.inside)} hold the lock together")

    def final(self) -> None:
        must(self.lock.word == 0, "the lock is free, and its word is not")


class Boot(System):
    """Threads whose first calls come together."""

    def __init__(self, without: str = "", threads: int = 3) -> None:
        super().__init__(without)
        self.boot = self.record("hak_boot", ready=0, classes=0, inits=0)
        for i in range(threads):
            self.threads[f"thread {i}"] = self.hak_boot_init()

    def hak_boot_init(self) -> Thread:
        yield "hak_load_acquire(&hak_boot.ready) != 2"
        if self.boot.ready != 2:
            yield from self.hak_boot_init_slow()
        must(self.boot.classes == 2, "a thread goes on before the classes are set up")

    def hak_boot_init_slow(self) -> Thread:
        boot = self.boot
        if self.has("the compare-and-swap of the first caller"):
            yield "hak_cas(&hak_boot.ready, &zero, 1u)"
            first, boot.ready = boot.ready == 0, boot.ready or 1
        else:
            yield "hak_cas(&hak_boot.ready, &zero, 1u)"
            first = boot.ready == 0
            yield "hak_cas(&hak_boot.ready, &zero, 1u)"
            boot.ready = boot.ready or 1
        if not first:
            if self.has("the wait of the second caller"):
                yield Step("hak_load_acquire(&hak_boot.ready) != 2", lambda: boot.ready == 2)
            return
        yield "hak_option_init()"
        boot.inits += 1
        boot.classes = 1
        yield "hak_class_init()"
        boot.classes = 2
        yield "hak_store_release(&hak_boot.ready, 2u)"
        boot.ready = 2

    def final(self) -> None:
        must(self.boot.inits == 1, "the options are read more than once")
