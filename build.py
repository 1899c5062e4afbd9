#!/usr/bin/env python3
"""Compile hakmem's C file; hakmem.py, bench.py, setup.py and the tests all build through here.

    python build.py                 the release library, beside this file
    python build.py debug tsan      other variants, as _hakmem_backend-debug.so and so on
    python build.py --force         compile even if nothing changed
    python build.py --list          the variants and what each is for
    python build.py --print-path    where the library is, and nothing else
    python build.py vendor DIR      write DIR/hakmem.py, which needs no other file: the C source is inside
    python build.py vendor --check DIR    exit 1 if DIR/hakmem.py is not what vendor would write now

The compiler is $CC (which may carry arguments), else cc, gcc or clang. The compiler line is printed when
something is compiled. A library whose stamp (.NAME.stamp: a hash of source and flags, and the compiler
line) still holds is left alone. What cannot lie beside its source goes into the user's cache, where a file's
name is the hash of all that it is made from.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import grp
import hashlib
import os
import platform
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "_hakmem_backend.c"
WORKLOADS = HERE / "_bench_workloads.c"
MODULE = HERE / "hakmem.py"
TEXTS: dict[str, str] = {}  # what a vendored hakmem.py carries instead of files, this one included; else empty

# -init names no function: that of the C runtime does nothing, but lies amid cold code, which it would bring into memory
COMMON = """-std=gnu11 -fPIC -shared -pthread -fvisibility=hidden
    -fno-builtin-malloc -fno-builtin-calloc -fno-builtin-realloc -fno-builtin-free
    -fno-semantic-interposition -ftls-model=initial-exec -fno-plt
    -Wall -Wextra -Wshadow -Wconversion -Wl,-z,nodelete -Wl,-z,now -Wl,-init=hak_none""".split()

# name: (flags, what it is for)
VARIANTS = {
    "release": ("-O2", "what everybody uses"),
    "debug": ("-O1 -g -DHAK_DEBUG=1", "with assertions"),
    "hardened": ("-O2 -DHAK_HARDENED=1", "finds misuse of blocks at once, and hands them out in random order"),
    "asan": ("-O1 -g -fsanitize=address -DHAK_NO_OVERRIDE=1", "AddressSanitizer; exports hak_* only"),
    "ubsan": (
        "-O1 -g -fsanitize=undefined -fno-sanitize-recover=all -DHAK_NO_OVERRIDE=1",
        "UndefinedBehaviorSanitizer; exports hak_* only",
    ),
    "tsan": ("-O1 -g -fsanitize=thread -DHAK_NO_OVERRIDE=1", "ThreadSanitizer; exports hak_* only"),
    "nolock": ("-O2 -DHAK_NOLOCK=1", "locks compiled out: one thread only, shows in benchmarks what they cost"),
}
WORKLOAD_FLAGS = ["-O2", "-pthread"]


class BuildError(RuntimeError):
    """No compiler, or the compiler refused; the text says what to do."""


def find_compiler() -> list[str]:
    """The compiler's command: $CC, else the first of cc, gcc, clang."""
    chosen = os.environ.get("CC", "").strip()
    try:
        candidates = [shlex.split(chosen)] if chosen else [["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise BuildError(f"CC={chosen}: {error}") from None
    for command in candidates:
        if shutil.which(command[0]):
            return command
    tried = f"CC={chosen} is not a program" if chosen else "no cc, gcc or clang on the PATH"
    raise BuildError(
        f"hakmem needs a C compiler: {tried}. Install one (Debian, Ubuntu: apt-get install gcc libc6-dev; "
        "Fedora: dnf install gcc) or set CC."
    )


def flags(variant: str = "release") -> list[str]:
    """The compiler flags of a variant."""
    if variant not in VARIANTS:
        raise BuildError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    return [*VARIANTS[variant][0].split(), f'-DHAK_VARIANT="{variant}"', *COMMON]


def library_path(variant: str = "release", directory: Path = HERE) -> Path:
    """Where the library of a variant lies, built or not."""
    return directory / f"_hakmem_backend{'' if variant == 'release' else '-' + variant}.so"


def _content(source: Path) -> bytes:
    """The bytes of a source. A vendored hakmem.py never looks at files beside it: they are somebody else's."""
    if TEXTS and source.name not in TEXTS:
        raise BuildError(f"{source.name} is not inside a vendored hakmem.py; pip install hakmem, or use a checkout")
    return TEXTS[source.name].encode() if TEXTS else source.read_bytes()


def source_hash(source: Path, arguments: Sequence[str]) -> str:
    """A name for what this source, these flags and this kind of machine make, whichever compiler does it."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        libc = None
    kind = "\0".join([*arguments, platform.system(), platform.machine(), libc or ""])
    return hashlib.sha256(kind.encode() + b"\0" + _content(source)).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that processes that start together compile once."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _stamp(target: Path) -> Path:
    return target.parent / f".{target.name}.stamp"


def _is_current(target: Path, wanted: list[str]) -> bool:
    """Compares as many lines of the stamp as are wanted: the first is the hash, the second the compiler line."""
    try:
        return target.exists() and _stamp(target).read_text().splitlines()[: len(wanted)] == wanted
    except OSError:
        return False


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A name to write a file under that then takes its target's place, so that nobody sees half of it.

    It is in a directory of its own, under a name that nobody can guess and put a link at before.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".new", dir=target.parent) as private:
        fresh = Path(private, target.name)
        yield fresh
        os.replace(fresh, target)


def _run_compiler(compiler: list[str], source: Path, target: Path, arguments: Sequence[str], quiet: bool) -> None:
    """Compile one file while holding its target's lock."""
    with _replacing(target) as fresh:
        command = [*compiler, *arguments, "-o", str(fresh), str(source), "-ldl"]
        if not quiet:
            print(shlex.join([*command[:-3], str(target), *command[-2:]]), flush=True)
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        if done.returncode:
            raise BuildError(f"{shlex.join(command)}\nended with status {done.returncode}:\n{done.stderr}")
        if done.stderr and not quiet:
            print(done.stderr, end="", file=sys.stderr, flush=True)


def compile_file(
    source: Path, target: Path, arguments: Sequence[str], force: bool = False, quiet: bool = False
) -> Path:
    """Compile one C file unless its stamp says that nothing changed."""
    if TEXTS:
        raise BuildError("a vendored hakmem.py compiles into the cache only")
    if not source.exists():
        raise BuildError(f"{source} is missing")
    wanted = [source_hash(source, arguments)]
    try:
        compiler = find_compiler()
        wanted.append(shlex.join([*compiler, *arguments]))
    except BuildError:
        if not force and _is_current(target, wanted):
            return target
        raise
    if not force and _is_current(target, wanted):
        return target
    with _locked(target.parent / f".{target.name}.lock"):
        if force or not _is_current(target, wanted):
            _run_compiler(compiler, source, target, arguments, quiet)
            _stamp(target).write_text("\n".join(wanted) + "\n")
    return target


# ---- the user's cache, for whoever has no tree of his own to compile in
OTHER_PLACES = "set XDG_CACHE_HOME to a directory of yours, or HAKMEM_LIBRARY to a library that is already built"


def _only_ours(group: int) -> bool:
    """Whether a group is the one that many systems make for each user, of the user's name and without others."""
    try:
        user, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user and set(found.gr_mem) <= {user}


def _check_place(directory: Path) -> None:
    """BuildError if others could put a directory of theirs in the place of this one, or of one above it."""
    trusted = {os.geteuid(), os.stat("/").st_uid}
    for place in reversed(directory.parents):  # from the top: what is below cannot change any more
        status = place.lstat()
        writers = status.st_mode & (0o002 if _only_ours(status.st_gid) else 0o022)
        if status.st_uid not in trusted or (writers and not status.st_mode & stat.S_ISVTX):
            raise BuildError(f"others own {place} or can write to it, and so replace {directory}: {OTHER_PLACES}")


def cache_directory() -> Path:
    """The user's own directory for compiled files; refused if anybody else could put one there."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = root if root.is_absolute() else Path(os.path.expanduser("~"), ".cache")
    if not root.is_absolute():  # never a name under /tmp instead: others could guess it, and be there first
        raise BuildError(f"there is no home directory to compile into: {OTHER_PLACES}")
    root.mkdir(parents=True, exist_ok=True)
    directory = root.resolve() / "hakmem"  # from here on no link leads anywhere else
    directory.mkdir(mode=0o700, exist_ok=True)
    _check_place(directory)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        advice = f"has to be a directory of yours that no one else can write to (chmod 700), or {OTHER_PLACES}"
        raise BuildError(f"{directory} {advice}")
    if os.statvfs(directory).f_flag & os.ST_NOEXEC:
        raise BuildError(f"{directory} is on a file system mounted noexec: {OTHER_PLACES}")
    return directory


def _as_file(source: Path, target: Path) -> Path:
    """A source to compile; an embedded text becomes a file beside the target, where debuggers will look for it."""
    if not TEXTS:
        return source
    written = target.with_suffix(".c")
    with _replacing(written) as fresh:
        fresh.write_bytes(_content(source))
    return written


def compile_in_cache(source: Path, suffix: str, arguments: Sequence[str]) -> Path:
    """What a source makes, in the user's cache; compiled unless it is there, as its name says what is in it."""
    try:
        target = cache_directory() / (source_hash(source, arguments)[:24] + suffix)
        if not target.exists():
            compiler = find_compiler()
            with _locked(target.parent / f".{target.name}.lock"):
                if not target.exists():
                    _run_compiler(compiler, _as_file(source, target), target, arguments, quiet=True)
    except OSError as error:
        raise BuildError(f"{error}: {OTHER_PLACES}") from error
    return target


def build_in_cache(variant: str = "release") -> Path:
    """The library of a variant, in the user's cache."""
    return compile_in_cache(SOURCE, ".so", flags(variant))


def _own_tree() -> bool:
    """Whether compiled files may lie beside the sources: in a checkout, but not among what pip has installed."""
    return not TEXTS and Path(__file__).name == "build.py" and os.access(HERE, os.W_OK)


# ---- what callers ask for
def build(variant: str = "release", force: bool = False, quiet: bool = False, directory: Path = HERE) -> Path:
    """Make the library of a variant and return its path."""
    return compile_file(SOURCE, library_path(variant, directory), flags(variant), force, quiet)


def refresh() -> None:
    """Make the release library again if it was made here from another source, whichever compiler did it."""
    target = library_path()
    if _stamp(target).exists() and not _is_current(target, [source_hash(SOURCE, flags())]):
        build(quiet=True)


def library(variant: str = "release") -> Path:
    """The library of a variant, compiled if need be: beside the source in a tree of one's own, else in the cache."""
    return build(variant, quiet=True) if _own_tree() else build_in_cache(variant)


def workloads(force: bool = False, quiet: bool = False) -> Path:
    """Make the benchmark's workload program, which knows nothing of hakmem, and return its path."""
    if _own_tree():
        return compile_file(WORKLOADS, HERE / "_bench_workloads", WORKLOAD_FLAGS, force, quiet)
    return compile_in_cache(WORKLOADS, "", WORKLOAD_FLAGS)


# ---- vendoring: hakmem.py, the C source and this file as one file
FILLED = "_EMBEDDED: dict[str, str] = "
EMPTY = FILLED + "{}  # name: text; `build.py vendor` fills it"
MADE_BY = "# Made by `python build.py vendor DIR` from hakmem "


def _literal(text: str) -> str:
    """A text as a raw string, so that people can read and compare what they have vendored."""
    for quotes in ('"' * 3, "'" * 3):
        if quotes not in text:
            return f"r{quotes}{text}{quotes}"
    raise BuildError("a source that holds both kinds of triple quotes cannot be embedded")


def _embedded(module: str) -> Any:
    """What Python will find in _EMBEDDED of a module."""
    try:
        for statement in ast.parse(module).body:
            if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "_EMBEDDED":
                return ast.literal_eval(statement.value or ast.Constant(None))
    except (SyntaxError, ValueError):
        pass
    return None


def _header(version: str, texts: dict[str, str]) -> list[str]:
    return [
        f"{MADE_BY}{version}: do not edit.",
        "# It needs no other file, only a C compiler at the first import. The same command makes it again from another",
        "# version; with --check it says whether this file is current. Made of, as sha256sum prints them:",
        *(f"#   {hashlib.sha256(text.encode()).hexdigest()}  {name}" for name, text in texts.items()),
    ]


def vendored() -> str:
    """The text of a hakmem.py that needs no other file."""
    module = MODULE.read_bytes().decode()
    texts = {"build.py": Path(__file__).read_bytes().decode(), SOURCE.name: SOURCE.read_bytes().decode()}
    lines = module.split("\n")
    version = re.search(r'^__version__ = "(.+)"$', module, re.MULTILINE)
    if lines.count(EMPTY) != 1 or not version:
        raise BuildError(f"{MODULE} is not the one that belongs to {__file__}")
    inside = "".join(f"    {name!r}: {_literal(text)},\n" for name, text in texts.items())
    lines[lines.index(EMPTY)] = f"{FILLED}{{\n{inside}}}"
    first = int(lines[0].startswith("#!"))
    header = _header(version[1], {MODULE.name: module, **texts})
    made = "\n".join([*lines[:first], *header, *lines[first:]])
    if _embedded(made) != texts:
        raise BuildError("the sources do not survive as string literals of Python")
    return made


def vendor(directory: Path) -> Path:
    """Write hakmem.py into a directory, and return its path."""
    text, target = vendored(), directory / MODULE.name
    if target.exists() and MADE_BY not in target.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise BuildError(f"{target} was not made by this command; move it away first")
    directory.mkdir(parents=True, exist_ok=True)
    with _replacing(target) as fresh:
        fresh.write_bytes(text.encode())
    return target


def check_vendored(directory: Path) -> None:
    """BuildError unless a directory holds what vendor would write now."""
    target = directory / MODULE.name
    if not target.exists():
        raise BuildError(f"{target} is missing")
    if target.read_bytes() != vendored().encode():
        raise BuildError(f"{target} is not what this version makes; run: python build.py vendor {directory}")


# ---- the command line
def _vendor_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="build.py vendor", description="Write DIR/hakmem.py, which needs no other file: the C source is inside."
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="made if it does not exist")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if DIR/hakmem.py is not current")
    return parser.parse_args(arguments)


def _build_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="default: release")
    parser.add_argument("--force", action="store_true", help="compile even if nothing changed")
    parser.add_argument("--list", action="store_true", help="list the variants")
    parser.add_argument("--print-path", action="store_true", help="print the library's path without building it")
    return parser.parse_args(arguments)


def _vendor_command(options: argparse.Namespace) -> None:
    if options.check:
        check_vendored(options.directory)
    else:
        print(vendor(options.directory))


def _build_command(options: argparse.Namespace) -> None:
    if options.list:
        for name, (own_flags, purpose) in VARIANTS.items():
            print(f"{name:8} {purpose} ({own_flags})")
        return
    for variant in options.variants or ["release"]:
        flags(variant)
        if options.print_path:
            print(library_path(variant))
        else:
            build(variant, force=options.force)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if given[:1] == ["vendor"]:
            _vendor_command(_vendor_options(given[1:]))
        else:
            _build_command(_build_options(given))
    except (BuildError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
