"""What the README says is so: its commands, options and session. Run as a program, it writes the table of options."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import hakmem

README = Path(__file__).resolve().parent.parent / "README.md"
OPTIONS = re.compile(r"(<!-- options: .*? -->\n).*?(<!-- end of options -->)", re.DOTALL)


def options_table() -> str:
    rows = ["| variable | default | may change | what it does |", "|---|---|---|---|"]
    for option in hakmem.config:
        row = hakmem.config.option(option)
        default = f"{row.default >> 20} MiB" if row.type == "bytes" else f"{int(row.default)} {row.unit}".strip()
        rows.append(f"| `{row.env}` | {default} | {row.when} | {row.help} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    return OPTIONS.sub(lambda found: found[1] + options_table() + found[2], text)


def test_the_table_of_options_is_current() -> None:
    text = README.read_text()
    assert OPTIONS.search(text)
    assert with_table(text) == text, "run: python tests/test_readme.py"


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
    README.write_text(with_table(README.read_text()))
