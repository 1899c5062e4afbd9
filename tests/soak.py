#!/usr/bin/env python3
"""Put a program that does everything at once on hakmem for a while, and check every byte, every count and its RSS.

    python tests/soak.py --minutes 60
    python tests/soak.py --minutes 10 --variant debug --seed 7 --live-mb 128

Two threads that die and are replaced, and start short-lived ones themselves, allocate, grow, shrink and free blocks of
0 bytes to 100 MiB, their own and one another's, zeroed and aligned ones among them; a third trims, reads statistics,
sets options and forks. Cycles of fill, steady, drain and idle take the live bytes up and down; their mixes of sizes
differ. Whatever is wrong is said at once, the run goes on, and the exit status is 1 (130 if interrupted):

bytes   Every byte of a block is written when it is made, by a key that is kept apart from it, and checked when it is
        grown or freed, and again where all threads stand still: after steady, and twice in idle.
zero    Blocks of calloc are zero.
blocks  Standing still, hakmem knows each block as live, and its live_blocks and live_bytes equal the program's own;
        what is committed adds up (check_laws in tests/c/common.h).
child   Children find what their parent had, allocate, free their parent's blocks, start a thread, and end with 0.
call    No call fails, alignments are kept, blocks have the room that was asked for.
rss     RSS is below a bound that follows from hakmem's rules. P: the most live bytes in this cycle and the last; live
        bytes count what malloc_usable_size says. A sixteenth: the most that a slab may waste. base: RSS of the program
        with its threads and tables, before it has made a block. metadata: a 32nd of the most live bytes in any cycle (a
        superslab's 76 KiB are 1/55 of it, and are never given back) and 3 MiB for heaps. caches: the blocks in threads'
        stacks and batches, as hakmem counts them, and that count is checked against what so many threads may have.
        slabs: of each class that has any, one a thread.
   load     at any time: base + 2 * 17/16 P + 2 * retain + caches + slabs + metadata. Free memory is at most as much
            as is in use, or as retain and what experience adds to it say; that holds for units, and for mappings.
   idle     when nothing was freed for purge_ms, and slow paths have looked at the clock: base + what the live blocks
            may hold (the slab of each, large blocks themselves; 17/16 P at most) + caches + slabs + metadata. Free
            units and kept mappings: no more than 4 MiB.
   trim     after malloc_trim(0) in each thread: base + OS pages that hold a live block + slabs + metadata. The caches
            are empty.
   own      standing still: base + what hakmem says may be resident (committed_bytes less free_clean_bytes) + 2 MiB.

A line each 10 seconds on a terminal, each minute elsewhere; then a table:

      elapsed    operations    threads   forks   trims  blocks  live MB   RSS MB  bound MB  phase  faults
      0:00:00        14,668         15       0       8     916     18.9     26.3     205.0  fill        0
      0:01:00    40,577,105     33,558      66     463   9,187     93.5    147.1     496.5  drain       0

    1.5 minutes of release, seed 11: 62,321,539 operations, 48.3 GB verified, 51,518 threads, 99 forks, 702 trims,
    1,919 snapshots, 382 settings, 28 cycles, RSS 260.6 MB at most
    bound      looked at    least margin     RSS there   bound there
    load             309        178.7 MB       26.3 MB      205.0 MB
    idle              28         23.6 MB       14.5 MB       38.0 MB
    trim              29          7.7 MB        9.0 MB       16.8 MB
    own               85          7.9 MB        9.0 MB       16.9 MB
    no fault
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "c" / "soak.c"
sys.path.insert(0, str(ROOT))

import build  # noqa: E402

SABOTAGE = {
    "corrupt": "changes a byte of a block",
    "zero": "changes a byte of what calloc returned",
    "lose": "counts a block that is gone",
    "leak": "makes a block that nobody knows",
    "rss": "touches 256 MiB that nobody knows",
    "child": "lets a child fail",
    "hang": "lets a thread never come back",
}
STATE = "elapsed operations threads forks trims live rss bound faults phase blocks".split()
OURS = ("HAKMEM_", "LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES")


class Soak:
    """A run: what the workload has said so far, and what is printed of it."""

    def __init__(self, title: str, every: float) -> None:
        self.title = title
        self.every = every
        self.state: dict[str, str] = {}
        self.bounds: list[list[str]] = []
        self.totals: list[str] = []
        self.found: dict[str, int] = {}
        self.faults: list[str] = []  # ours, and lines of the workload that are none of its protocol
        self.peak_rss = 0
        self.printed = 0.0

    def hear(self, line: str) -> None:
        """Take in one line of the workload."""
        word, _, rest = line.partition(" ")
        if word == "state":
            self.state = dict(zip(STATE, rest.split()))
            self.peak_rss = max(self.peak_rss, int(self.state["rss"]))
            if time.monotonic() - self.printed >= self.every:
                self.show()
        elif word == "fault":
            print(f"FAULT {rest}", flush=True)
        elif word == "bound":
            self.bounds.append(rest.split())
        elif word == "found":
            kind, count = rest.split()
            self.found[kind] = int(count)
        elif word == "end":
            self.totals = rest.split()
        elif word != "start":
            self.blame(line)

    def blame(self, text: str) -> None:
        """A fault that the workload has not counted."""
        self.faults.append(text)
        print(f"FAULT {text}", flush=True)

    def show(self) -> None:
        """Print a line of progress."""
        if not self.printed:
            print(
                f"{'elapsed':>9} {'operations':>13} {'threads':>10} {'forks':>7} {'trims':>7} {'blocks':>7} "
                f"{'live MB':>8} {'RSS MB':>8} {'bound MB':>9}  {'phase':6} {'faults':>6}"
            )
        self.printed = time.monotonic()
        n = {name: int(value) for name, value in self.state.items() if name != "phase"}
        seconds = n["elapsed"] // 1000
        print(
            f"{seconds // 3600:3}:{seconds // 60 % 60:02}:{seconds % 60:02} {n['operations']:13,} {n['threads']:10,} "
            f"{n['forks']:7,} {n['trims']:7,} {n['blocks']:7,} {n['live'] / 1e6:8.1f} {n['rss'] / 1e6:8.1f} "
            f"{n['bound'] / 1e6:9.1f}  {self.state['phase']:6} {n['faults'] + len(self.faults):6}",
            flush=True,
        )

    def finish(self, interrupted: bool) -> int:
        """Print the table; returns the exit status."""
        print()
        if self.totals:
            ms, operations, threads, forks, trims, snapshots, settings, verified, cycles = map(int, self.totals)
            print(
                f"{ms / 60000:.1f} minutes of {self.title}: {operations:,} operations, "
                f"{verified / 1e9:,.1f} GB verified, {threads:,} threads, {forks:,} forks, {trims:,} trims, "
                f"{snapshots:,} snapshots, {settings:,} settings, {cycles:,} cycles, "
                f"RSS {self.peak_rss / 1e6:.1f} MB at most"
            )
            print(f"{'bound':10}{'looked at':>10}{'least margin':>16}{'RSS there':>14}{'bound there':>14}")
            for name, times, margin, rss, bound in self.bounds:
                print(
                    f"{name:10}{int(times):10,}{int(margin) / 1e6:13.1f} MB{int(rss) / 1e6:11.1f} MB"
                    f"{int(bound) / 1e6:11.1f} MB"
                )
        elif self.state:
            self.show()
        for kind, count in self.found.items():
            if count:
                print(f"{kind}: {count:,} {'bytes lost' if kind == 'bytes' else 'faults'}")
        bad = sum(self.found.values()) + len(self.faults) + (0 if self.totals else int(self.state.get("faults", "0")))
        print("interrupted; " if interrupted else "", f"{bad:,} faults" if bad else "no fault", sep="", flush=True)
        return 1 if bad else 130 if interrupted else 0


def lines(process: subprocess.Popen[bytes], patience: float) -> Iterator[Optional[str]]:
    """The process's lines; None, and the end, if it is silent for too long."""
    assert process.stdout
    descriptor = process.stdout.fileno()
    rest = b""
    while True:
        if not select.select([descriptor], [], [], patience)[0]:
            yield None
            return
        data = os.read(descriptor, 65536)
        *whole, rest = (rest + data).split(b"\n")
        if not data:
            whole = [rest] if rest else []
        for line in whole:
            yield line.decode(errors="replace")
        if not data:
            return


def library(variant: str) -> Path:
    """The library of a variant, built; $HAKMEM_LIBRARY instead, if it is set and the variant is release."""
    if variant == "release" and "HAKMEM_LIBRARY" in os.environ:
        return Path(os.environ["HAKMEM_LIBRARY"])
    if "-DHAK_NO_OVERRIDE=1" in build.flags(variant):
        raise build.BuildError(f"the variant {variant} has no malloc of its own to preload; tests/test_tsan.py runs it")
    return build.build(variant, quiet=True)


def compile_workload(directory: Path) -> Path:
    """The workload as a program."""
    target = directory / "soak"
    flags = "-std=gnu11 -O2 -g -pthread -fno-builtin".split()
    command = [*build.find_compiler(), *flags, str(SOURCE), "-o", str(target), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise build.BuildError(done.stderr)
    return target


def run(options: argparse.Namespace, directory: Path) -> int:
    """Run the workload, and say how it went."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    command = [
        compile_workload(directory), options.seed, round(options.minutes * 60_000), options.live_mb,
        round(options.cycle * 1000), options.sabotage,
    ]  # fmt: skip
    environment = {**kept, "LD_PRELOAD": str(library(options.variant))}
    soak = Soak(f"{options.variant}, seed {options.seed}", 10 if sys.stdout.isatty() else 60)
    interrupted = False
    with subprocess.Popen(
        [str(part) for part in command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            for line in lines(process, options.patience):
                if line is None:
                    soak.blame(f"silent for {options.patience:g} s: it hangs")
                    break
                soak.hear(line)
            else:
                status = process.wait(options.patience)
                if status not in (0, 1) or not soak.totals:
                    name = f" ({signal.strsignal(-status)})" if status < 0 else ""
                    soak.blame(f"the workload ended with {status}{name}")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return soak.finish(interrupted)


def main() -> int:
    """The command."""
    text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=text[0], epilog=text[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default: %(default)s)")
    parser.add_argument("--variant", default="release", help="of the library (default: %(default)s)")
    parser.add_argument("--live-mb", type=int, default=256, help="most live MiB (default: %(default)s)")
    parser.add_argument("--cycle", type=float, default=6, help="seconds of a cycle, about (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=120, help="seconds without a word before it counts as hung")
    parser.add_argument(
        "--sabotage", choices=SABOTAGE, default="", help="break one thing, to see that it is found: "
        + "; ".join(f"{name} {what}" for name, what in SABOTAGE.items()),
    )  # fmt: skip
    options = parser.parse_args()
    if options.minutes <= 0 or options.cycle <= 0 or options.patience <= 0 or not 8 <= options.live_mb <= 4096:
        parser.error("minutes, cycle and patience must be above 0, live-mb from 8 to 4096")
    with tempfile.TemporaryDirectory(prefix="hakmem-soak-") as directory:
        try:
            return run(options, Path(directory))
        except build.BuildError as error:
            parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    sys.exit(main())
