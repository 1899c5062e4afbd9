"""What the README says is so: commands, options, outcomes, session. Run as a program, it writes its two tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from test_faults import table

import hakmem

README = Path(__file__).resolve().parent.parent / "README.md"
OPTIONS = re.compile(r"(<!-- options: .*? -->\n).*?(<!-- end of options -->)", re.DOTALL)

FAULTS = re.compile(r"(<!-- faults: .*? -->\n).*?(<!-- end of faults -->)", re.DOTALL)
# what a row of README's table says, and the row of tests/faults/table.txt that it is taken from
FAULT_ROWS = {
    "`free` of what is not hakmem's: stack, static data, another allocator's": "foreign_stack",
    "`free` of a wild pointer": "wild 0x8000000000000010",
    "`free` of a block twice in a row": "double_free 64",
    "`free` of a block twice, with others between": "double_free_others_between 64",
    "the same, and two callers get the block before a flush": "double_free_handed_out_twice",
    "`free` of a block by two threads, once each": "double_free_by_two_threads",
    "`free`, twice, of a block whose thread has ended": "double_free_of_orphan",
    "`free` of a block twice, its slab given back between": "double_free_slab_released",
    "`free` of a block twice, and it is somebody else's by then": "double_free_in_use_again",
    "`free` of a block above 1 MiB twice": "double_free 2M",
    "`free` in a child of `fork`, after the parent's": "double_free_in_child",
    "`free` of a pointer into a block up to 1 MiB": "interior 64 16",
    "`free` of a pointer into a larger block": "interior 2M 1M",
    "`realloc` of a freed block, where it has room": "realloc_freed_in_place",
    "`realloc` of a pointer into a block": "realloc_interior 64 8",
    "`malloc_usable_size` of a freed block": "usable_size_freed 64",
    "`operator delete` with another size": "delete_size 64 63",
    "write behind the end of a block, by a byte or a NUL": "overrun 100 100 1",
    "write past that, within the room of the block": "overrun 1100 1150 1",
    "write before a block, where the one before it ends": "underrun 60",
    "write behind the end of a block that is never freed": "overrun_never_freed",
    "write into another live block": "overrun_into_next",
    "write into a freed block up to 1 MiB": "write_after_free 64 20",
    "write into a freed block above 1 MiB": "write_after_free 2M 0",
    "read of a pointer in a freed block, and a look there": "read_after_free",
    "write that runs into hakmem's tables": "guard_of_tables 0",
    "a handler of `SIGABRT` that allocates": "handler_among_threads",
}


def outcome_in_words(outcome: str) -> str:
    if outcome in ("not found", "no guard"):
        return "not found"
    if outcome == "SIGSEGV":
        return "`SIGSEGV`"
    if "exit 7" in outcome:
        return "works"
    if not outcome.endswith(" later"):
        return "at once"
    call = outcome.partition(":")[0]
    return {"malloc": "at reuse", "free": "at `free`" if "past its end" in outcome else "at a flush"}[call]


def faults_table() -> str:
    rows = ["| what | default | hardened | `HAKMEM_HARDENED=2` | program |", "|---|---|---|---|---|"]
    for what, command in FAULT_ROWS.items():
        cells = map(outcome_in_words, table()[command].values())
        rows.append(f"| {' | '.join([what, *cells])} | `{command}` |")
    return "\n".join(rows) + "\n"


def options_table() -> str:
    rows = ["| variable | default | may change | what it does | when to set it |", "|---|---|---|---|---|"]
    for option in hakmem.config:
        row = hakmem.config.option(option)
        default = "none" if row.type == "text" else f"{int(row.default)} {row.unit}".strip()
        if row.type == "bytes":
            default = f"{row.default >> 20} MiB"
        default = str(row.default) if row.type == "mode" else default
        rows.append(f"| `{row.env}` | {default} | {row.when} | {row.help} | {row.use} |")
    return "\n".join(rows) + "\n"


def with_tables(text: str) -> str:
    text = FAULTS.sub(lambda found: found[1] + faults_table() + found[2], text)
    return OPTIONS.sub(lambda found: found[1] + options_table() + found[2], text)


def test_the_tables_of_options_and_of_faults_are_current() -> None:
    text = README.read_text()
    assert OPTIONS.search(text)
    assert FAULTS.search(text)
    assert with_tables(text) == text, "run: python tests/test_readme.py"


def test_the_session_is_what_python_prints(python: Callable[..., object]) -> None:
    flags = "doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL"
    python(  # in a process of its own, as the figures are those of a session that has done nothing else
        f"import doctest, sys\n"
        f"result = doctest.testfile({str(README)!r}, module_relative=False, optionflags={flags})\n"
        f"sys.exit(result.failed or result.attempted < 10)"
    )


def test_the_two_commands_stand_there_once() -> None:
    commands = re.findall(r"^ +(python -m venv .*)$", README.read_text(), re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("bench.py")
    assert "pytest" in commands[1]


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
