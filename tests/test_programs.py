"""Programs that know nothing of hakmem do the same under it, to the byte, as they do without."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Callable, Optional

import pytest
from _helpers import C_DIR, ROOT, Argument, cc, cxx, library, need, program, run, succeed, text

# ---- CPython's own tests

CPYTHON_TESTS = ["test_threading", "test_fork1", "test_json", "test_bytes", "test_re", "test_dict", "test_list"]
CONFIGURATIONS = {
    "as it is": (False, "pymalloc"),
    "hakmem": (True, "pymalloc"),
    "hakmem for every object": (True, "malloc"),
}
DRIVER = """
import json, sys, unittest
outcomes = {}
class Result(unittest.TestResult):
    def stopTest(self, test):
        super().stopTest(test)
        outcomes.setdefault(test.id(), "ok")
    def addSkip(self, test, reason): outcomes[test.id()] = "skipped"
    def addError(self, test, error): outcomes[test.id()] = self._exc_info_to_string(error, test)
    addFailure = addError
    def addSubTest(self, test, subtest, error):
        if error: self.addError(test, error)
unittest.defaultTestLoader.loadTestsFromName("test." + sys.argv[1]).run(Result())
sys.stdout.write("\\n" + json.dumps(outcomes))
"""


@cache
def python_with_tests() -> Optional[str]:
    """A Python whose installation has CPython's tests."""
    names = [sys.executable, shutil.which("python3"), "/usr/bin/python3", "/usr/local/bin/python3"]
    names += map(str, sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"), reverse=True))
    modules = ", ".join(f"test.{name}" for name in [*CPYTHON_TESTS, "support"])
    for name in names:
        if name and os.access(name, os.X_OK):
            done = subprocess.run([name, "-c", f"import {modules}"], capture_output=True, check=False, timeout=60)
            if done.returncode == 0:
                return name
    return None


def outcomes(name: str, configuration: str, directory: Path) -> dict[str, str]:
    python = python_with_tests()
    assert python
    preload, pymalloc = CONFIGURATIONS[configuration]
    own = directory / f"{name} {configuration}"
    own.mkdir()
    done = run([python, "-c", DRIVER, name], preload=preload, env={"PYTHONMALLOC": pymalloc}, cwd=own, timeout=240)
    assert done.returncode == 0, f"{configuration}: {done.returncode}: {text(done.stderr)[-3000:]}"
    found: dict[str, str] = json.loads(text(done.stdout).splitlines()[-1])
    return found


Jobs = dict[tuple[str, str], "Future[dict[str, str]]"]


@pytest.fixture(scope="module")
def cpython(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """All runs, a few at a time: most of what the slow ones do is to wait."""
    if python_with_tests() is None:
        pytest.skip("no Python has CPython's tests (Debian, Ubuntu: apt-get install libpython3-testsuite)")
    directory = tmp_path_factory.mktemp("cpython")
    with ThreadPoolExecutor(4) as pool:
        yield {
            (name, configuration): pool.submit(outcomes, name, configuration, directory)
            for name in CPYTHON_TESTS
            for configuration in CONFIGURATIONS
        }


@pytest.mark.parametrize("configuration", [name for name in CONFIGURATIONS if name != "as it is"])
@pytest.mark.parametrize("name", CPYTHON_TESTS)
def test_cpythons_own(name: str, configuration: str, cpython: Jobs) -> None:
    plain, ours = (cpython[name, which].result() for which in ("as it is", configuration))
    assert plain.keys() == ours.keys()
    assert len(plain) > 3
    worse = {test: outcome for test, outcome in ours.items() if outcome != "ok" and plain[test] in ("ok", "skipped")}
    assert {test for test in worse if plain[test] != worse[test]} == set(), worse


# ---- other programs: each recipe runs in a directory of its own and returns what must not depend on the allocator

Run = Callable[..., str]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def words(count: int) -> bytes:
    rng = random.Random(7)
    return b"".join(
        b"%d word %x\n" % (rng.randrange(count), rng.getrandbits(rng.randrange(8, 200))) for _ in range(count)
    )


def c_compiler(run: Run, here: Path) -> str:
    source = ROOT / "_hakmem_backend.c"
    run([*cc(), "-O1", "-g", "-std=gnu11", "-c", source, "-o", "out.o"])
    return digest(here / "out.o")


def cxx_compiler_and_linker(run: Run, here: Path) -> str:
    run([*cxx(), "-std=c++17", "-pthread", C_DIR / "containers.cc", "-o", "program", "-Wl,--build-id=none"])
    return digest(here / "program")


def cxx_containers(run: Run, here: Path) -> str:
    return run([program("containers.cc")])


def git(run: Run, here: Path) -> str:
    command = [need("git"), "-c", "user.name=A", "-c", "user.email=a@b", "-c", "pack.threads=2"]
    run([*command, "init", "-q", "-b", "main", "."])
    rng = random.Random(3)
    for commit in range(6):
        for i in range(60):
            (here / f"file {i}").write_bytes(rng.randbytes(rng.randrange(1, 3000)).hex().encode() + words(20 + commit))
        run([*command, "add", "-A"])
        run([*command, "commit", "-q", "-m", f"commit {commit}"])
    run([*command, "repack", "-q", "-a", "-d", "-f", "--depth=10"])
    run([*command, "fsck", "--no-progress"])
    run([*command, "gc", "-q"])
    log = run([*command, "log", "--stat", "-p", "--format=%H %an %s"])
    return log + run([*command, "cat-file", "--batch-check", "--batch-all-objects"])


def sqlite3(run: Run, here: Path) -> str:
    script = """
        CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, data BLOB);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
            INSERT INTO t SELECT i, 'name ' || (i * 7919 % 10007), zeroblob(i % 300) FROM n;
        CREATE INDEX by_name ON t (name);
        SELECT name, count(*), sum(length(data)) FROM t GROUP BY name ORDER BY 3 DESC, 1 LIMIT 50;
        SELECT count(*) FROM t a JOIN t b ON a.name = b.name WHERE a.id < 3000;
        UPDATE t SET name = name || hex(data) WHERE id % 5 = 0;
        DELETE FROM t WHERE id % 3 = 0;
        VACUUM; PRAGMA integrity_check;
        SELECT count(*), sum(length(name)) FROM t;
    """
    return run([need("sqlite3"), "file.db"], stdin=script.encode())


def sort(run: Run, here: Path) -> str:
    (here / "in").write_bytes(words(400_000))
    run([need("sort"), "--parallel=4", "-S", "40M", "-T", ".", "-o", "out", "in"], env={"LC_ALL": "C"})
    run([need("sort"), "--parallel=4", "-k3", "-u", "-o", "unique", "in"], env={"LC_ALL": "C"})
    return digest(here / "out") + digest(here / "unique")


def perl(run: Run, here: Path) -> str:
    script = r"""
        my %h; my @a;
        for my $i (1 .. 100000) {
            $h{"key " . ($i * 7919 % 20011)} .= chr(97 + $i % 26);
            push @a, [$i, "x" x ($i % 50)];
        }
        my $s = join ",", map { "$_=$h{$_}" } sort keys %h;
        $s =~ s/(\d)=(\w)/$2=$1/g;
        my @sorted = sort { $b->[1] cmp $a->[1] || $a->[0] <=> $b->[0] } @a;
        print length($s), " ", unpack("%32C*", $s), " ", join(" ", map { $_->[0] } @sorted[0 .. 50]), "\n";
    """
    return run([need("perl"), "-e", script])


def xz(run: Run, here: Path) -> str:
    original = words(150_000)
    (here / "file").write_bytes(original)
    run([need("xz"), "-T2", "-1", "--block-size=1MiB", "-k", "file"])
    packed = digest(here / "file.xz")
    (here / "file").unlink()
    run([need("xz"), "-d", "-T2", "file.xz"])
    assert (here / "file").read_bytes() == original
    return packed


def node(run: Run, here: Path) -> str:
    script = """
        const m = new Map(), zlib = require("zlib"), crypto = require("crypto");
        for (let i = 0; i < 200000; i++) m.set("k" + (i * 7919 % 50021), { i, text: "x".repeat(i % 40) });
        const json = JSON.stringify([...m]);
        const packed = zlib.gzipSync(Buffer.from(json));
        const back = zlib.gunzipSync(packed).toString() === json;
        const buffers = []; for (let i = 0; i < 300; i++) buffers.push(Buffer.alloc(100000 + i, i));
        const { Worker } = require("worker_threads");
        new Worker("require('worker_threads').parentPort.postMessage([1,2,3].map(x => x * 2))", { eval: true })
            .on("message", (x) => console.log(json.length, back, x,
                crypto.createHash("sha256").update(json).update(Buffer.concat(buffers)).digest("hex")));
    """
    return run([need("node"), "-e", script])


def python(run: Run, here: Path) -> str:
    script = """
import collections, hashlib, itertools, json, random, re, threading, zlib
rng = random.Random(1)
data = [{"id": i, "tags": [str(rng.random()) for _ in range(i % 9)], "text": "ab" * (i % 99)} for i in range(20000)]
text = json.dumps(data)
assert json.loads(text) == data
counts = collections.Counter(re.findall(r"0\\.\\d{3}", text))
results = []
def work(n): results.append((n, zlib.crc32(b"".join(sorted(str(i * n).encode() for i in range(30000))))))
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(len(text), hashlib.sha256(text.encode()).hexdigest(), counts.most_common(3), sorted(results))
"""
    return run([sys.executable, "-c", script], env={"PYTHONMALLOC": "malloc"})


def shell(run: Run, here: Path) -> str:
    (here / "in").write_bytes(words(30_000))
    pipe = r"""
        cut -d' ' -f1 in | sort -n | uniq -c | sort -rn | head -20
        tr a-f A-F < in | sed -n 's/word/&&/p' | grep -c ABC
        awk '{ n[$1 % 100]++ } END { for (i = 0; i < 100; i++) printf "%d ", n[i] }' in
        seq 1 20000 | xargs echo | wc
    """
    return run(["sh", "-c", pipe])


RECIPES = [c_compiler, cxx_compiler_and_linker, cxx_containers, git, sqlite3, sort, perl, xz, node, python, shell]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_same_output(recipe: Callable[[Run, Path], str], tmp_path: Path) -> None:
    def outcome(preload: bool) -> str:
        # one path for both: compilers write where they were into what they make
        here = tmp_path / "here"
        here.mkdir()
        fixed = {
            "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
            "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
            "HOME": str(here),
        }

        def go(command: list[Argument], env: Optional[dict[str, str]] = None, stdin: Optional[bytes] = None) -> str:
            return succeed(command, preload=preload, cwd=here, env={**fixed, **(env or {})}, stdin=stdin, quiet=preload)

        try:
            return recipe(go, here)
        finally:
            here.rename(tmp_path / f"preload-{preload}")

    assert outcome(preload=True) == outcome(preload=False)


def test_the_library_really_is_loaded() -> None:
    assert library().name in succeed(["cat", "/proc/self/maps"])
