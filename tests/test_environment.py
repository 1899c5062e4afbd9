"""Of any environment hakmem takes documented values, else the default, with one printable line for each variable."""

from __future__ import annotations

import ctypes
import random
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from _helpers import C_DIR, cc, library, need, program, run, scratch, text

import hakmem

FLAGS = "-std=gnu11 -g -Wall -Wextra -pthread -DHAK_NO_OVERRIDE=1 -Dwrite=fuzz_write".split()
SANITIZE = "-fno-sanitize-recover=all -fsanitize=address,undefined"
WORDS = {b"true": 1, b"yes": 1, b"on": 1, b"false": 0, b"no": 0, b"off": 0}
PREFIX = b"HAKMEM_"


class Option(NamedTuple):
    """A line of `options show`."""

    name: str
    env: bytes
    type: str
    default: int
    least: int
    most: int
    words: tuple[str, ...]


def reference(option: Option, value: bytes) -> Optional[int]:
    """What README promises of a text: a number, with a suffix where bytes are meant, or a word where a switch is."""
    if option.type == "text":
        return len(value) if len(value) <= option.most else None
    if option.type == "bool" and value.lower() in WORDS:
        return WORDS[value.lower()]
    if value.decode("latin-1").lower() in option.words:
        return option.words.index(value.decode("latin-1").lower())
    suffix = rb"(?:([kmgt])i?b?)?" if option.type == "bytes" else rb"()"
    match = re.fullmatch(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)" + suffix, value, re.IGNORECASE)
    if not match or len(match[1].lstrip(b"+-0")) > 30:  # beyond any option's bounds, and beyond what Python converts
        return None
    number = int(match[1]) << 10 * (1 + b"kmgt".index(match[2].lower()) if match[2] else 0)
    return number if option.least <= number <= option.most else None


def show(*entries: bytes) -> tuple[dict[str, int], dict[str, Option], list[str]]:
    """Values, options and lines on stderr of a process whose environment has these entries beside LD_PRELOAD."""
    file = scratch() / "environ"
    file.write_bytes(b"".join(entry + b"\0" for entry in [b"LD_PRELOAD=" + str(library()).encode(), *entries]))
    command = [program("environ.c"), file, program("options.c"), "show"]
    done = run(command, preload=False)
    assert done.returncode == 0, text(done.stderr)
    rows = [line.split() for line in text(done.stdout).splitlines()]
    options = {
        row[0]: Option(row[0], row[1].encode(), row[2], *map(int, row[4:7]), hakmem.config.option(row[0]).words)
        for row in rows
    }
    assert re.fullmatch(rb"(hakmem: [ -~]*\n)*", done.stderr), done.stderr
    return {row[0]: int(row[7]) for row in rows}, options, text(done.stderr).splitlines()


@cache
def table() -> dict[str, Option]:
    return show()[1]


def expected(entries: list[bytes]) -> tuple[dict[str, int], int]:
    """The values after these entries, and how many lines they are worth."""
    values = {option.name: option.default for option in table().values()}
    rules = b""
    by_env = {option.env: option for option in table().values()}
    lines = 0
    for entry in entries:
        name, equals, value = entry.partition(b"=")
        if not equals or not name.startswith(PREFIX) or name == b"HAKMEM_LIBRARY":
            continue
        option = by_env.get(name)
        taken = reference(option, value) if option else None
        if option:
            values[option.name] = option.default if taken is None else taken
        if option and option.name == "site_rules":
            rules = b"" if taken is None else value
        lines += taken is None
    return values, lines + sum(1 for rule in rules.split(b";") if rule)  # those here are not rules: a line each


def check(*entries: bytes) -> list[str]:
    values, lines = expected(list(entries))
    got, _, said = show(*entries)
    assert got == values, entries
    assert len(said) == lines, (entries, said)
    return said


def some_value(chance: random.Random) -> bytes:
    pieces = [b"0", b"1", b"24", b"100", b"9" * 19, b"9" * 40, b"-", b"+", b" ", b"\n", b"k", b"M", b"G", b"Ti", b"B",
              b"on", b"Off", b"TRUE", b"e", b".", b"\xff", b"\x1b[31m", b"="]  # fmt: skip
    if chance.random() < 0.1:
        return bytes(chance.randrange(1, 256) for _ in range(chance.choice([1, 5, 50])))
    return b"".join(chance.choice(pieces) for _ in range(chance.choice([0, 1, 1, 2, 2, 3, 5])))


def some_name(chance: random.Random) -> bytes:
    names = [option.env for option in table().values()]
    name = bytearray(chance.choice(names))
    for _ in range(chance.choice([0, 0, 0, 1, 2, 5])):
        at = chance.randrange(len(PREFIX), len(name) + 1)
        name[at : at + chance.choice([0, 1])] = bytes([chance.choice(range(1, 256))]) * chance.choice([0, 1, 1, 300])
    return bytes(name)


@pytest.mark.parametrize(
    "entry",
    [
        b"HAKMEM_",
        b"HAKMEM_=",
        b"HAKMEM_=1",
        b"HAKMEM_RETAIN",
        b"HAKMEM_RETAIN=",
        b"HAKMEM_RETAIN==",
        b"HAKMEM_RETAIN =1",
        b"hakmem_retain=1",
        b"HAKMEM_RETAIN=\x1b]0;owned\x07\x1b[2J",
        b"HAKMEM_RETAIN=1\nhakmem: free(0x1): already free",
        b"HAKMEM_\x1b[2J\x9b31m=1",
        b"HAKMEM_RETAIN\n=1",
        b"HAKMEM_" + b"A" * 100_000 + b"=1",
        b"HAKMEM_RETAIN=" + b"1" * 100_000,
        b"HAKMEM_RETAIN=" + b" " * 100_000 + b"5",
        b"HAKMEM_RETAIN=\xc3\xa9",
        b"HAKMEM_LIBRARY=\xff",
        b"HAKMEM_LIBRARYS=1",
        b"=HAKMEM_RETAIN=1",
        b"",
    ],
    ids=lambda entry: repr(entry[:40]),
)
def test_an_odd_entry(entry: bytes) -> None:
    check(entry)


def test_what_a_line_shows_of_a_value() -> None:
    (line,) = check(b"HAKMEM_RETAIN=1\nhakmem: free(0x1)\x1b\x9b\x7f")
    assert line.startswith("hakmem: HAKMEM_RETAIN=1?hakmem: free(0x1)???: must be ")
    assert check(b"HAKMEM_RETAIN=" + b"x" * 500)[0].startswith(f"hakmem: HAKMEM_RETAIN={'x' * 100}: must be ")
    assert check(b"HAKMEM_RETIAN=1") == ["hakmem: HAKMEM_RETIAN: no such option, did you mean HAKMEM_RETAIN?; ignored"]
    assert check(b"HAKMEM_\x1b[m=1") == ["hakmem: HAKMEM_?[m: no such option; ignored"]


def test_of_a_name_that_stands_twice_the_last_counts() -> None:
    assert check(b"HAKMEM_RETAIN=5M", b"HAKMEM_RETAIN=7M") == []
    assert len(check(b"HAKMEM_RETAIN=5M", b"HAKMEM_RETAIN=bogus")) == 1
    assert len(check(b"HAKMEM_RETAIN=bogus", b"HAKMEM_RETAIN=5M")) == 1


@pytest.mark.parametrize("seed", range(10))
def test_random_environments(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        count = chance.randrange(1, 6)
        entries = [some_name(chance) + b"=" * (chance.random() < 0.95) + some_value(chance) for _ in range(count)]
        # Reserving little, or an odd amount, is a value like any other; a switch that costs much is not wanted here,
        # nor a report in a file of a random name.
        unwanted = rb"HAKMEM_RESERVE=[ \n+]*[1-9]|HAKMEM_REPORT_AT_EXIT="
        check(*(entry for entry in entries if not re.match(unwanted, entry)))


def parse_in_c() -> Any:
    loaded = ctypes.CDLL(str(library()))
    loaded.hak_option_parse.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64)]
    return loaded.hak_option_parse


def test_texts_mean_what_the_reference_says() -> None:
    parse, value = parse_in_c(), ctypes.c_int64()
    chance = random.Random(7)
    for _ in range(20_000):
        option = chance.choice(list(table().values()))
        given = some_value(chance)
        code = parse(option.name.encode(), given, ctypes.byref(value))
        meant = reference(option, given)
        assert (value.value if code == 0 else None) == meant, (option, given, code)


def compiled(name: str, command: list[str], flags: str) -> Path:
    target = scratch() / name
    line = [*command, *FLAGS, *flags.split(), str(C_DIR / "fuzz_options.c"), "-o", str(target)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=180, check=False)
    if re.search(r"cannot find|No such file", done.stderr):
        pytest.skip(f"{command[0]} has not got all runtimes of {flags}")
    assert done.returncode == 0, done.stderr
    return target


def test_random_texts_under_sanitizers() -> None:
    done = run([compiled("fuzz_options", cc(), f"-O0 {SANITIZE}"), 1, 50_000], preload=False)
    assert done.returncode == 0, text(done.stderr)
    assert done.stdout == b"50000 inputs\n"


@pytest.mark.soak
def test_ten_minutes_of_texts_found_by_coverage() -> None:
    fuzzer = compiled("libfuzzer_options", [need("clang")], f"-O1 -DFUZZ_LIBFUZZER=1 {SANITIZE},fuzzer")
    done = run([fuzzer, "-max_total_time=600", "-max_len=600"], preload=False, cwd=scratch(), timeout=900)
    assert done.returncode == 0, text(done.stderr)[-4000:]
