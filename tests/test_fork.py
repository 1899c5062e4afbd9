"""A child forked while other threads are inside the allocator can allocate, free, start threads and fork again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from _helpers import ROOT, case_names, library, program, run, succeed, text

SUBPROCESSES = """
import subprocess, sys, threading
stop = threading.Event()
def work():
    while not stop.is_set():
        [bytearray(n * 37 % 5000) for n in range(200)]
threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for t in threads: t.start()
for i in range(10):
    assert subprocess.run(["echo", str(i)], capture_output=True, text=True).stdout == f"{i}\\n"
stop.set()
for t in threads: t.join()
print("done")
"""
POOL = """
import multiprocessing, hashlib
def work(n):
    return hashlib.sha256(b"".join(str(i).encode() * (i % 50) for i in range(n))).hexdigest()
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        print(pool.map(work, range(3000, 3100)))
    queue = context.Queue()
    children = [context.Process(target=lambda i=i: queue.put("x" * i * 10000)) for i in range(8)]
    for child in children: child.start()
    print(sorted(len(queue.get()) for _ in children))
    for child in children: child.join()
    print([child.exitcode for child in children])
"""


# together 1,000 children a run
CHILDREN = {"": 800, "HAKMEM_ENABLE_TLS": 100, "HAKMEM_TLS_TINY": 100}

# every way in which Python makes processes; a file, as spawn and forkserver import it again
EVERY_WAY = """
import concurrent.futures, multiprocessing, os, subprocess, sys, threading
NUMBERS = range(2000, 2020)
def work(n):
    return n, sum(len(str(i) * (i % 50)) for i in range(n)), len([bytearray(n) for _ in range(50)])
def send(queue, n):
    queue.put((n, "x" * n * 10000))
def busy():
    while not stop.wait(0.0005):
        [bytearray(n * 37 % 5000) for n in range(200)]
def main():
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            print(method, list(pool.map(work, NUMBERS)))
        queue = context.Queue()
        children = [context.Process(target=send, args=(queue, n)) for n in range(3)]
        for child in children: child.start()
        print(sorted((n, len(text)) for n, text in (queue.get() for _ in children)))
        for child in children: child.join()
        print([child.exitcode for child in children])
    for options in ({}, {"close_fds": False}, {"preexec_fn": os.getpid}, {"start_new_session": True}):
        done = [subprocess.run(["echo", str(i)], capture_output=True, **options).stdout for i in range(5)]
        print(sorted(options), done)
    for i in range(5):
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {i}"], os.environ)
        print(os.waitpid(pid, 0)[1] >> 8)
        pid = os.fork()
        if pid == 0:
            again = os.fork()
            good = again == 0 or os.waitpid(again, 0)[1] == 0
            os._exit(work(NUMBERS[i])[0] != NUMBERS[i] or not good)
        print(os.waitpid(pid, 0)[1])
    print(os.system("exit 3") >> 8, os.popen("echo popen").read())
if __name__ == "__main__":
    stop = threading.Event()
    threads = [threading.Thread(target=busy, daemon=True) for _ in range(2 if sys.argv[1] == "threads" else 0)]
    for thread in threads: thread.start()
    main()
    stop.set()
    for thread in threads: thread.join()
"""
# hakmem as a module, not preloaded: another thread uses it, and a monitor is inside its own lock, when fork comes
MODULE = """
import os, signal, sys, threading, hakmem
assert hakmem.mode().how == "loaded"
buffer = hakmem.Buffer(100_000)
buffer[:5] = b"hello"
kept = [hakmem.malloc(n * 7) for n in range(1, 500)]
monitor = hakmem.RssMonitor(0.01).start()
stop, holding = threading.Event(), threading.Event()
def busy():
    while not stop.wait(0.0002):
        for p in [hakmem.malloc(n) for n in range(1, 5000, 50)]: hakmem.free(p)
def hold():
    with monitor._stop._cond:  # where the monitor's own thread is for a moment after each sample
        holding.set()
        stop.wait()
threads = [threading.Thread(target=f, daemon=True) for f in (busy, busy, hold)]
for thread in threads: thread.start()
holding.wait()
good = 0
for i in range(8):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        assert "stopped" in repr(monitor), monitor
        monitor.stop()
        assert monitor.peak > 0 and len(monitor.report()) > 0
        before = hakmem.memory_stats()["allocs"]
        assert bytes(buffer[:5]) == b"hello"
        buffer[:5] = b"child"
        buffer.close()
        for p in kept: hakmem.free(p)
        hakmem.free(hakmem.realloc(hakmem.malloc(5000), 3_000_000))
        assert hakmem.memory_stats()["allocs"] > before
        hakmem.trim(), hakmem.report("summary", "json"), hakmem.heap_table()
        with hakmem.RssMonitor(0.001) as own, hakmem.Buffer(10) as small:
            small[0] = 1
        assert len(own.samples) >= 2
        thread = threading.Thread(target=lambda: hakmem.free(hakmem.malloc(100)))
        thread.start()
        thread.join()
        sys.exit(0)
    good += os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads: thread.join()
monitor.stop()
assert bytes(buffer[:5]) == b"hello"
for p in kept: hakmem.free(p)
print(good)
"""


@pytest.mark.parametrize("case", case_names("fork.c"))
def test_fork(case: str) -> None:
    succeed([program("fork.c"), case, 30])


@pytest.mark.parametrize("switch", CHILDREN)
def test_none_of_1000_children_fails_with_threads_in_every_slow_path(switch: str) -> None:
    count = CHILDREN[switch]
    said = succeed([program("forks.c", "-O2"), count], env={switch: "0"} if switch else {}, timeout=300)
    assert said == f"{count} of {count} children ended with 0\n"


@pytest.mark.soak
@pytest.mark.parametrize("switch", CHILDREN)
def test_none_of_10_000_children_fails(switch: str) -> None:
    said = succeed([program("forks.c", "-O2"), 10_000], env={switch: "0"} if switch else {}, timeout=3000)
    assert said == "10000 of 10000 children ended with 0\n"


@pytest.mark.parametrize("case", case_names("raw_clone.c"))
def test_a_child_that_the_c_library_knows_nothing_of(case: str) -> None:
    done = run([program("raw_clone.c", "-rdynamic"), case])
    assert done.returncode == 0, text(done.stderr)
    said = done.stderr.splitlines()
    if case == "a_lock_left_behind":  # three children, each of which says why it ends rather than hang
        assert len(said) == 3
        assert all(line.startswith(b"hakmem: this process was cloned without fork()") for line in said)
    else:
        assert said == []


@pytest.mark.parametrize("pymalloc", ["pymalloc", "malloc"])
@pytest.mark.parametrize("source", [SUBPROCESSES, POOL], ids=["subprocess", "multiprocessing"])
def test_python_children(source: str, pymalloc: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", source]
    env = {"PYTHONMALLOC": pymalloc}
    assert succeed(command, env=env) == succeed(command, env=env, preload=False)


@pytest.mark.parametrize(("beside", "pymalloc"), [("threads", "malloc"), ("nothing", "pymalloc")])
def test_every_way_in_which_python_makes_processes(beside: str, pymalloc: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(EVERY_WAY, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", script, beside]
    env = {"PYTHONMALLOC": pymalloc}
    assert succeed(command, env=env) == succeed(command, env=env, preload=False)


def test_a_child_uses_the_module_that_its_parent_has_loaded() -> None:
    command = [sys.executable, "-W", "ignore", "-c", MODULE]
    env = {"PYTHONPATH": str(ROOT), "HAKMEM_LIBRARY": str(library())}
    assert succeed(command, env=env, preload=False) == "8\n"
