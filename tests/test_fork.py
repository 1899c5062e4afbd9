"""A child forked while other threads are inside the allocator can allocate, free, start threads and fork again."""

from __future__ import annotations

import sys

import pytest
from _helpers import case_names, program, run, succeed, text

SUBPROCESSES = """
import subprocess, sys, threading
stop = threading.Event()
def work():
    while not stop.is_set():
        [bytearray(n * 37 % 5000) for n in range(200)]
threads = [threading.Thread(target=work) for _ in range(2)]
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
