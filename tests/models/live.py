"""What other processes see: a page between two increments of its number, and commands that either side may take."""

from __future__ import annotations

from interleavings import Step, System, Thread, must

# What a mutation may take out: the C function and the expression that has it.
PARTS = {
    "the number that is odd while the page is written": (
        "hak_live_publish_locked",
        "(void)hak_exchange(&head->seq, seq + 1);",
    ),
    "the number that is even again only after that": (
        "hak_live_publish_locked",
        "- begin; hak_store_release(&head->seq, seq + 2);",
    ),
    "the look that is cleared before the number is read": (
        "hak_live_act_locked",
        "(void)hak_exchange(hak_load(&hak_watch.look), 0u);",
    ),
    "the compare-and-swap that takes a command": ("hak_live_obey_locked", "!hak_cas(&c->taken, &taken, asked)"),
    "the look whether the command is the next": ("hak_live_obey_locked", "if ((taken & ~HAK_WITHDRAWN) != asked - 1)"),
    "the lock of those who publish": ("hak_live_act", "!hak_lock_try(&hak_live.lock)"),
    "the compare-and-swap that withdraws a command": (
        "hak_command_withdraw",
        "hak_cas(&c->taken, &taken, asked | HAK_WITHDRAWN)",
    ),
    "the word that says it is over only when it is": (
        "hak_live_act_locked",
        "hak_store_release(&hak_live.command->done, asked);",
    ),
}


class Publication(System):
    """Two threads of a process publish a page of two words, and a reader in another process reads it."""

    def __init__(self, without: str = "", publications: int = 2, readings: int = 2) -> None:
        super().__init__(without)
        self.page = self.record("page", seq=0, first=0, second=0)
        self.live = self.record("live", lock="")
        for i in range(publications):
            self.threads[f"publisher {i}"] = self.hak_live_publish_locked(i + 1)
        self.threads["reader"] = self.read(readings)

    def hak_live_publish_locked(self, number: int) -> Thread:
        page, me = self.page, self.thread
        if self.has("the lock of those who publish"):  # the caller takes it
            yield Step("hak_live_head_t *head = f->head;", lambda: not self.live.lock)
            self.live.lock = me
        yield "seq = head->seq"
        seq = page.seq
        if self.has("the number that is odd while the page is written"):
            yield "(void)hak_exchange(&head->seq, seq + 1);"
            page.seq = seq + 1
        early = not self.has("the number that is even again only after that")
        if early:
            yield "hak_store_release(&head->seq, seq + 2);"
            page.seq = seq + 2
        yield "memcpy((char *)head + f->counts, rows + f->counts, count * 2 * sizeof(uint64_t));"
        page.first = number
        yield "head->sum = sum;"
        page.second = number
        if not early:
            yield "hak_store_release(&head->seq, seq + 2);"
            page.seq = seq + 2
        self.live.lock = ""

    def read(self, readings: int) -> Thread:
        page = self.page
        for _reading in range(readings):
            yield "seq"
            seq = page.seq
            if seq % 2:
                continue
            yield "first"
            first = page.first
            yield "second"
            second = page.second
            yield "seq again"
            if page.seq == seq:
                must(first == second, f"a reading of {first} and {second} passes for one")


WITHDRAWN = "withdrawn"


class Commands(System):
    """Readers ask a process for something, wait or give up or are killed; threads of the process obey."""

    def __init__(self, without: str = "", readers: tuple[str, ...] = ("waits", "gives up"), threads: int = 2) -> None:
        super().__init__(without)
        self.file = self.record("file", lock="")
        self.c = self.record("command", look=0, asked=0, taken=0, by="", done=0, what="")
        self.live = self.record("live", lock="")
        self.seen = self.record("seen", obeyed=(), withdrawn=(), over=(), asking=len(readers))
        for i in range(len(readers)):
            self.threads[f"reader {i}"] = self.ask(f"{i} {readers[i]}", readers[i])
        for i in range(threads):
            self.threads[f"thread {i}"] = self.act()

    # ---- a reader, in another process

    def is_withdrawn(self) -> bool:
        return bool(self.c.by == WITHDRAWN and self.c.taken == self.c.asked)

    def is_over(self) -> bool:
        return self.c.done == self.c.asked or self.is_withdrawn()

    def ask(self, what: str, manner: str) -> Thread:
        c, seen = self.c, self.seen
        yield Step("flock", lambda: not self.file.lock)
        self.file.lock = self.thread
        yield from self.hak_command_withdraw()  # what one has left that was killed
        yield Step("is it over?", self.is_over)
        must(len(seen.over) == len(seen.obeyed), "a command is written while another is being obeyed")
        c.what = what
        yield from self.hak_command_send()
        if manner == "is killed":
            self.file.lock = ""
            seen.asking -= 1
            return
        if manner == "gives up":
            yield from self.hak_command_withdraw()
        yield Step("wait", self.is_over)
        if self.is_withdrawn():
            must(manner == "gives up", f"{what} is withdrawn, and is waited for")
            seen.withdrawn = (*seen.withdrawn, what)
        else:
            must(what in seen.obeyed, f"{what} is done, and has not been obeyed")
            must(what in seen.over, f"{what} is done before it is over")
        self.file.lock = ""
        seen.asking -= 1

    def hak_command_send(self) -> Thread:
        yield "hak_store_release(&c->asked, hak_load(&c->asked) + 1);"
        self.c.asked += 1
        yield "hak_store_release(&c->look, 1u);"
        self.c.look = 1

    def hak_command_withdraw(self) -> Thread:
        c = self.c
        yield "uint64_t asked = hak_load(&c->asked), taken = hak_load(&c->taken);"
        taken = c.taken
        if c.asked == taken:
            return
        yield "hak_cas(&c->taken, &taken, asked | HAK_WITHDRAWN)"
        if c.taken == taken or not self.has("the compare-and-swap that withdraws a command"):
            c.taken, c.by = c.asked, WITHDRAWN

    # ---- the process

    def act(self) -> Thread:
        while True:
            yield Step("wait", lambda: self.c.look or not self.seen.asking)
            if not self.c.look:
                return
            yield from self.hak_live_act()

    def hak_live_act(self) -> Thread:
        yield "!hak_lock_try(&hak_live.lock)"
        if self.live.lock:
            return
        self.live.lock = self.thread
        yield from self.hak_live_act_locked()
        yield "hak_unlock(&hak_live.lock);"
        self.live.lock = ""

    def hak_live_act_locked(self) -> Thread:
        c, seen = self.c, self.seen
        cleared = self.has("the look that is cleared before the number is read")
        if cleared:
            yield "(void)hak_exchange(hak_load(&hak_watch.look), 0u);"
            c.look = 0
        asked = yield from self.hak_live_obey_locked()
        if asked:
            early = not self.has("the word that says it is over only when it is")
            if early:
                yield "hak_store_release(&hak_live.command->done, asked);"
                c.done = asked
            yield "hak_live_publish_locked(&hak_live.page, HAK_LIVE_COUNT,"
            seen.over = (*seen.over, seen.obeyed[-1])
            if not early:
                yield "hak_store_release(&hak_live.command->done, asked);"
                c.done = asked
        if not cleared:
            yield "(void)hak_exchange(hak_load(&hak_watch.look), 0u);"
            c.look = 0

    def hak_live_obey_locked(self) -> Thread:
        c, seen = self.c, self.seen
        yield "asked = hak_load_acquire(&c->asked)"
        asked = c.asked
        yield "taken = hak_load(&c->taken);"
        taken = c.taken
        if taken != asked - 1 and self.has("the look whether the command is the next"):
            return 0
        yield "!hak_cas(&c->taken, &taken, asked)"
        if c.taken != taken and self.has("the compare-and-swap that takes a command"):
            return 0
        c.taken, c.by = asked, "obeyed"
        yield "hak_load(&c->what)"
        must(c.what not in seen.obeyed, f"{c.what} is obeyed twice")
        must(c.what not in seen.withdrawn, f"{c.what} is obeyed, and was withdrawn")
        seen.obeyed = (*seen.obeyed, c.what)
        return asked

    def final(self) -> None:
        must(not self.file.lock, "the file stays locked")
