#!/usr/bin/env python3
"""Compile hakmem's C file; hakmem.py, bench.py, setup.py and the tests all build through here.

    python build.py                 the release library, beside this file
    python build.py debug tsan      other variants, as _hakmem_backend-debug.so and so on
    python build.py --force         compile even if nothing changed
    python build.py --list          the variants and what each is for
    python build.py --print-path    where the library is, and nothing else

The compiler is $CC (which may carry arguments), else cc, gcc or clang. The compiler line is printed when
something is compiled. A library whose stamp (.NAME.stamp: a hash of source and flags, and the compiler
line) still holds is left alone.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "_hakmem_backend.c"
WORKLOADS = HERE / "_bench_workloads.c"

COMMON = """-std=gnu11 -fPIC -shared -pthread -fvisibility=hidden
    -fno-builtin-malloc -fno-builtin-calloc -fno-builtin-realloc -fno-builtin-free
    -fno-semantic-interposition -ftls-model=initial-exec -fno-plt
    -Wall -Wextra -Wshadow -Wconversion -Wl,-z,nodelete -Wl,-z,now""".split()

# name: (flags, what it is for)
VARIANTS = {
    "release": ("-O2", "what everybody uses"),
    "debug": ("-O1 -g -DHAK_DEBUG=1", "with assertions"),
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
    candidates = [shlex.split(chosen)] if chosen else [["cc"], ["gcc"], ["clang"]]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    tried = f"CC={chosen} is not a program" if chosen else "no cc, gcc or clang on the PATH"
    raise BuildError(
        f"hakmem needs a C compiler: {tried}. Install one (Debian, Ubuntu: apt-get install gcc libc6-dev; "
        "Fedora: dnf install gcc; Alpine: apk add gcc musl-dev; macOS: xcode-select --install) or set CC."
    )


def flags(variant: str = "release") -> list[str]:
    """The compiler flags of a variant."""
    if variant not in VARIANTS:
        raise BuildError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    return [*VARIANTS[variant][0].split(), f'-DHAK_VARIANT="{variant}"', *COMMON]


def library_path(variant: str = "release", directory: Path = HERE) -> Path:
    """Where the library of a variant lies, built or not."""
    return directory / f"_hakmem_backend{'' if variant == 'release' else '-' + variant}.so"


def source_hash(source: Path, arguments: Sequence[str]) -> str:
    """A name for what this source, these flags and this kind of machine make, whichever compiler does it."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        libc = None
    kind = "\0".join([*arguments, platform.system(), platform.machine(), libc or ""])
    return hashlib.sha256(kind.encode() + b"\0" + source.read_bytes()).hexdigest()


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


def compile_file(
    source: Path, target: Path, arguments: Sequence[str], force: bool = False, quiet: bool = False
) -> Path:
    """Compile one C file unless its stamp says that nothing changed; readers never see half a file."""
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
        if not force and _is_current(target, wanted):
            return target
        fresh = target.parent / f".{target.name}.{os.getpid()}.new"
        command = [*compiler, *arguments, "-o", str(fresh), str(source), "-ldl"]
        if not quiet:
            print(shlex.join([*command[:-3], str(target), *command[-2:]]), flush=True)
        try:
            done = subprocess.run(
                command, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
            )
            if done.returncode:
                raise BuildError(f"{shlex.join(command)}\nended with status {done.returncode}:\n{done.stderr}")
            if done.stderr and not quiet:
                print(done.stderr, end="", file=sys.stderr, flush=True)
            os.replace(fresh, target)
        finally:
            fresh.unlink(missing_ok=True)
        _stamp(target).write_text("\n".join(wanted) + "\n")
    return target


def build(variant: str = "release", force: bool = False, quiet: bool = False, directory: Path = HERE) -> Path:
    """Make the library of a variant and return its path."""
    return compile_file(SOURCE, library_path(variant, directory), flags(variant), force, quiet)


def refresh() -> None:
    """Make the release library again if it was made here from another source, whichever compiler did it."""
    target = library_path()
    if _stamp(target).exists() and not _is_current(target, [source_hash(SOURCE, flags())]):
        build(quiet=True)


def workloads(force: bool = False, quiet: bool = False) -> Path:
    """Make the benchmark's workload program, which knows nothing of hakmem, and return its path."""
    return compile_file(WORKLOADS, HERE / "_bench_workloads", WORKLOAD_FLAGS, force, quiet)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="default: release")
    parser.add_argument("--force", action="store_true", help="compile even if nothing changed")
    parser.add_argument("--list", action="store_true", help="list the variants")
    parser.add_argument("--print-path", action="store_true", help="print the library's path without building it")
    options = parser.parse_args(arguments)
    if options.list:
        for name, (own_flags, purpose) in VARIANTS.items():
            print(f"{name:8} {purpose} ({own_flags})")
        return 0
    try:
        for variant in options.variants or ["release"]:
            flags(variant)
            if options.print_path:
                print(library_path(variant))
            else:
                build(variant, force=options.force)
    except (BuildError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
