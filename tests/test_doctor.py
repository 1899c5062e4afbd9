"""Doctor finds what keeps hakmem from a process or a command, and each cause that it names was made on purpose."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest
from _helpers import C_DIR, ROOT, cc, environment, library, need, program, scratch, succeed

import build
import hakmem

PYTHON = os.path.realpath(sys.executable)
NOBODY = 65534


@contextlib.contextmanager
def process(
    *command: Any, preload: Sequence[Any] = (), env: Optional[dict[str, str]] = None, **options: Any
) -> Iterator[int]:
    """A process that has said that it is there; its number. Its standard input is open while it is looked at."""
    changes = {**({"LD_PRELOAD": ":".join(map(str, preload))} if preload else {}), **(env or {})}
    with subprocess.Popen(
        [str(word) for word in command or (program("patient.c"),)],
        env=environment(changes),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        **options,
    ) as started:
        try:
            assert started.stdout
            assert started.stdout.readline() == b"ready\n"
            yield started.pid
        finally:
            started.kill()


def python(*words: str, **options: Any) -> contextlib.AbstractContextManager[int]:
    """A Python that runs a few lines and then waits."""
    *flags, code = words
    return process(PYTHON, *flags, "-c", f"{code}\nimport sys\nprint('ready', flush=True)\nsys.stdin.read()", **options)


def of(findings: list[hakmem.Finding], subject: str, level: Optional[str] = None) -> str:
    """What was found of a subject, with the advice; it is in one finding of that level at least."""
    rows = [row for row in findings if row.subject == subject and level in (None, row.level)]
    assert rows, (subject, level, findings)
    return "\n".join(f"{row.found} -> {row.advice}" for row in rows)


def without(findings: list[hakmem.Finding], subject: str, *levels: str) -> None:
    assert not [row for row in findings if row.subject == subject and row.level in (levels or (row.level,))], findings


def check_form(findings: list[hakmem.Finding]) -> None:
    """Advice stands with everything but what is well, and nothing fills more than a line."""
    for row in findings:
        assert row.level in ("ok", "note", "problem")
        assert bool(row.advice) == (row.level != "ok"), row
        assert "\n" not in row.found + row.advice


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("HAKMEM_", "LD_PRELOAD", "PYTHONMALLOC", "MALLOC_")) and name != "HAKMEM_LIBRARY":
            monkeypatch.delenv(name)


def patched(original: Path, name: str, *changes: tuple[int, bytes]) -> Path:
    """A copy of a file with some bytes of its ELF header changed."""
    target = scratch() / name
    image = bytearray(original.read_bytes())
    for offset, new in changes:
        image[offset : offset + len(new)] = new
    target.write_bytes(image)
    target.chmod(0o755)
    return target


def library_named(name: str, mark: str = "no_mark") -> Path:
    """A library of that name with a malloc and one symbol."""
    target = scratch() / name
    if not target.exists():
        shutil.copy(program("allocator.c", "-shared", "-fPIC", f"-DMARK={mark}"), target)
    return target


# ---- how hakmem is there


def test_this_process_has_it_as_a_module_and_is_told_how_to_start_on_it() -> None:
    findings = hakmem.doctor()
    check_form(findings)
    assert "loaded by a module" in of(findings, "hakmem", "note")
    assert "python -m hakmem run -- " in of(findings, "hakmem")
    assert "libc" in of(findings, "malloc", "ok")
    assert "512 bytes" in of(findings, "python", "ok")


def test_a_preloaded_process() -> None:
    with process(preload=[library()]) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert of(findings, "hakmem", "ok").startswith(f"preloaded: {library()}")
    assert of(findings, "malloc", "ok").startswith(f"the program calls that of {library()}")
    assert "HAKMEM_STATS_PAGE=1" in of(findings, "stats page", "note")
    assert {row.level for row in findings if row.subject not in ("stats page", "cgroup")} == {"ok"}


def test_a_process_without_it() -> None:
    with process() as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert f"-> python -m hakmem run -- {program('patient.c')}" in of(findings, "hakmem", "note")
    assert "libc" in of(findings, "malloc", "ok")


def test_a_program_that_is_linked_with_it() -> None:
    with process(program("patient.c", "-Wl,--no-as-needed", also=library())) as pid:
        findings = hakmem.doctor(pid)
    assert of(findings, "hakmem", "ok").startswith("linked with the program: ")
    assert str(library()) in of(findings, "malloc", "ok")


def test_a_vendored_copy() -> None:
    place = scratch() / "hakmem"
    place.mkdir(exist_ok=True)
    copy = shutil.copy(library(), place / "backend.so")
    with python(f"import ctypes; ctypes.CDLL({str(copy)!r})") as pid:
        assert "a vendored copy's" in of(hakmem.doctor(pid), "hakmem", "note")


def test_two_instances() -> None:
    copy = Path(shutil.copy(library(), scratch() / "second.so"))
    with process(preload=[library(), copy]) as pid:
        findings = hakmem.doctor(pid)
    assert "2 instances" in of(findings, "hakmem", "problem")
    assert str(library()) in of(findings, "malloc", "ok")


def test_a_library_that_was_replaced() -> None:
    copy = Path(shutil.copy(library(), scratch() / "_hakmem_backend-old.so"))
    with process(preload=[copy]) as pid:
        copy.unlink()
        findings = hakmem.doctor(pid)
    assert "replaced" in of(findings, "hakmem", "note")
    assert str(copy) in of(findings, "malloc", "ok")
    assert not [row for row in findings if row.level == "problem"]


# ---- LD_PRELOAD that had no effect


def test_a_static_program() -> None:
    try:
        static = program("patient.c", "-static")
    except AssertionError:
        pytest.skip("there is no static libc")
    with process(static, preload=[library()]) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert f"{static} is statically linked" in of(findings, "LD_PRELOAD", "problem")
    findings = hakmem.doctor([str(static)])
    check_form(findings)
    assert "statically linked" in of(findings, "hakmem", "problem")


@pytest.fixture
def open_place(tmp_path: Path) -> Iterator[Path]:
    """A directory that every user may enter; the test needs root."""
    if os.geteuid():
        pytest.skip("only root can start programs as somebody else")
    place = Path("/tmp") / f"hakmem-doctor-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def test_a_setuid_program_ignores_its_environment(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.statvfs(open_place).f_flag & os.ST_NOSUID:
        pytest.skip(f"{open_place} is on a file system mounted nosuid")
    setuid = open_place / "setuid"
    shutil.copy(program("patient.c"), setuid)
    shutil.copy(library(), open_place / "library.so")
    os.chown(setuid, NOBODY - 1, -1)
    setuid.chmod(0o4755)
    changes = {"HAKMEM_PURGE_MS": "5", "HAKMEM_STATS_PAGE": "1"}
    with process(setuid, preload=[open_place / "library.so"], env=changes, user=NOBODY, group=NOBODY) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert "setuid" in of(findings, "LD_PRELOAD", "problem")
    assert "ignored" in of(findings, "HAKMEM_PURGE_MS", "problem")
    assert "setuid" in of(hakmem.doctor([str(setuid)]), "hakmem", "problem")


def test_a_library_that_the_processs_user_may_not_read(open_place: Path) -> None:
    shutil.copy(program("patient.c"), open_place / "patient")
    (open_place / "closed").mkdir(mode=0o700)
    shutil.copy(library(), open_place / "closed" / library().name)
    closed = open_place / "closed" / library().name
    with process(open_place / "patient", preload=[closed], user=NOBODY, group=NOBODY) as pid:
        findings = hakmem.doctor(pid)
    assert "its user may not read that file" in of(findings, "LD_PRELOAD", "problem")
    assert f"install -m 755 {closed}" in of(findings, "LD_PRELOAD")


def test_a_library_that_is_not_among_the_processs_files() -> None:
    with process(preload=["/nonexistent/_hakmem_backend.so"]) as pid:
        assert "none among its files" in of(hakmem.doctor(pid), "LD_PRELOAD", "problem")
    with process(preload=["/nonexistent/other.so"]) as pid:  # not ours to call a problem
        assert "none among its files" in of(hakmem.doctor(pid), "LD_PRELOAD", "note")


def test_a_container(open_place: Path) -> None:
    """The library is there for us, but not in the process's own root."""
    dynamic = program("patient.c")
    needed = re.findall(r"(/\S+)", succeed([need("ldd"), dynamic], preload=False))
    for path in [str(dynamic), *needed]:
        target = open_place / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    code = "import os, sys; os.chroot(sys.argv[1]); os.execve(sys.argv[2], sys.argv[2:], {'LD_PRELOAD': sys.argv[3]})"
    with process(PYTHON, "-c", code, open_place, dynamic, library()) as pid:
        assert "none among its files" in of(hakmem.doctor(pid), "LD_PRELOAD", "problem")


def test_a_library_that_is_none() -> None:
    text = scratch() / "_hakmem_text.so"
    text.write_text("not a library")
    with process(preload=[text]) as pid:
        assert "no library" in of(hakmem.doctor(pid), "LD_PRELOAD", "problem")


def test_a_library_that_the_loader_refuses() -> None:
    strange = patched(library(), "_hakmem_strange.so", (7, b"\x09"))  # of another operating system
    with process(preload=[strange]) as pid:
        said = of(hakmem.doctor(pid), "LD_PRELOAD", "problem")
    assert "its dynamic loader refused it" in said
    command = said.partition("to see why: ")[2]
    told = subprocess.run(["sh", "-c", command], env=environment(), capture_output=True, text=True, check=False).stderr
    assert "ABI" in told  # the advice works


def test_an_environment_that_was_cleared_on_the_way() -> None:
    code = f"""
import subprocess
child = subprocess.Popen(["env", "-i", {str(program("patient.c"))!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert child.stdout.readline() == b"ready\\n"
print(child.pid)
"""
    with subprocess.Popen(
        [PYTHON, "-c", f"{code}\nimport sys\nsys.stdout.flush()\nsys.stdin.read()"],
        env=environment({"LD_PRELOAD": str(library())}), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as parent:  # fmt: skip
        assert parent.stdout
        findings = hakmem.doctor(int(parent.stdout.readline()))
        parent.kill()
    assert "environment was cleared" in of(findings, "hakmem", "problem")


@pytest.mark.parametrize(
    ("name", "offset", "new", "says"),
    [("32-bit", 4, b"\1", "32-bit program"), ("arm64", 18, struct.pack("=H", 183), "another processor")],
)
def test_a_program_of_another_architecture(name: str, offset: int, new: bytes, says: str, tmp_path: Path) -> None:
    other = patched(program("patient.c"), name, (offset, new))
    findings = hakmem.doctor([str(other)])
    check_form(findings)
    assert says in of(findings, "hakmem", "problem")
    root = machine(tmp_path, exe=other, environ=f"LD_PRELOAD={library()}")
    assert says in of(hakmem._examine(7, root), "LD_PRELOAD", "problem")


def test_a_program_with_musl(tmp_path: Path) -> None:
    other = program("patient.c", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1")
    assert "linked with musl" in of(hakmem.doctor([str(other)]), "hakmem", "problem")
    root = machine(tmp_path, exe=other, environ=f"LD_PRELOAD={library()}")
    assert "linked with musl" in of(hakmem._examine(7, root), "LD_PRELOAD", "problem")


# ---- whose malloc


@pytest.mark.parametrize("names", [["libjemalloc.so.2", "ours"], ["ours", "libjemalloc.so.2"]])
def test_the_first_in_ld_preload_wins(names: list[str]) -> None:
    other = library_named("libjemalloc.so.2", "mallctl")
    with process(preload=[library() if name == "ours" else other for name in names]) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    if names[0] == "ours":
        assert str(library()) in of(findings, "malloc", "ok")
        without(findings, "malloc", "problem")
        assert f"jemalloc is in {other}, for those who call it by name" in of(findings, "malloc", "note")
    else:
        assert f"preloaded, but {other} has a malloc" in of(findings, "malloc", "problem")
        assert f"jemalloc is in {other}, which the program calls" in of(findings, "malloc", "note")


def test_real_allocators_are_known_by_their_symbols(tmp_path: Path) -> None:
    seen = 0
    for name in ("jemalloc", "mimalloc", "tcmalloc"):
        for path in Path("/usr/lib").glob(f"*/lib{name}*.so.*"):
            renamed = shutil.copy(path, tmp_path / f"other{seen}.so")
            with process(preload=[renamed]) as pid:
                assert f"{name} is in {renamed}, which the program calls" in of(hakmem.doctor(pid), "malloc", "note")
            seen += 1
            break
    if not seen:
        pytest.skip("libjemalloc, libmimalloc and libtcmalloc are not installed")


def test_an_allocator_inside_the_program_wins() -> None:
    own = program("patient.c", "-DMARK=mi_malloc", also=C_DIR / "allocator.c")
    with process(own, preload=[library()]) as pid:
        findings = hakmem.doctor(pid)
    assert f"preloaded, but {own} has a malloc" in of(findings, "malloc", "problem")
    assert f"mimalloc is in {own}" in of(findings, "malloc", "note")
    assert f"preloaded, but {own} has a malloc" in of(hakmem.doctor([str(own)]), "malloc", "problem")


def test_an_allocator_that_a_library_hides_is_seen_and_is_not_the_programs() -> None:
    hides = program("allocator.c", "-shared", "-fPIC", "-fvisibility=hidden", "-DMARK=_rjem_mallctl")
    with process(preload=[hides]) as pid:
        findings = hakmem.doctor(pid)
    assert f"jemalloc is in {hides}, for those who call it by name" in of(findings, "malloc", "note")
    assert "libc" in of(findings, "malloc", "ok")


def test_every_other_is_known_by_the_name_of_its_file_and_by_what_is_inside(tmp_path: Path) -> None:
    """The names are made here; the real ones are in the tests beside this one, where they are installed."""
    source = tmp_path / "marks.c"
    texts = [mark for mark in hakmem._MARKS if ":" in mark]
    symbols = [mark for mark in hakmem._MARKS if ":" not in mark and mark != "malloc"]
    lines = [f'__asm__(".globl \\"{name}\\"\\n.type \\"{name}\\", @function\\n\\"{name}\\": nop");' for name in symbols]
    lines += [f'extern const char t{i}[]; const char t{i}[] = "{text} x";' for i, text in enumerate(texts)]
    source.write_text("\n".join(lines))
    made = tmp_path / "marks.so"
    subprocess.run([*cc(), "-shared", "-fPIC", "-nostdlib", str(source), "-o", str(made)], check=True)
    assert set(hakmem._object(str(made), made).marks) == set(texts) | set(symbols)
    for names, marks, what, kind, advice in hakmem._OTHERS:
        assert advice
        assert kind in hakmem._SAYS
        for name in names.split():
            assert (what, kind, advice) in hakmem._Object(f"/lib/{name}-x.so.2", set()).others
        for mark in marks.split():
            assert hakmem._Object("/bin/x", set(), marks={mark}).others == [(what, kind, advice)]
    assert hakmem._Object("/usr/bin/python3.13", set(), marks={"mimalloc:"}).others == []


@pytest.mark.parametrize(("command", "what"), [("node", "V8"), ("java", "Java")])
def test_runtimes_with_a_memory_of_their_own(command: str, what: str) -> None:
    need(command)
    assert f"{what} " in of(hakmem.doctor([command]), "malloc", "note")


def test_a_library_with_a_malloc_of_its_own() -> None:
    own = library_named("libown.so")
    code = f"import ctypes; ctypes.CDLL({str(own)!r}, mode=8)"  # RTLD_DEEPBIND
    with python(code, preload=[library()]) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert f"{own} has one, too" in of(findings, "malloc", "note")
    assert str(library()) in of(findings, "malloc", "ok")


def test_a_program_with_address_sanitizer() -> None:
    try:
        sanitized = program("patient.c", "-fsanitize=address")
    except AssertionError:
        pytest.skip("there is no libasan")
    with process(sanitized) as pid:
        assert "AddressSanitizer" in of(hakmem.doctor(pid), "malloc", "note")
    findings = hakmem.doctor([str(sanitized)])
    check_form(findings)
    assert "AddressSanitizer" in of(findings, "malloc", "problem")


def test_valgrind() -> None:
    with process(need("valgrind"), "-q", program("patient.c"), preload=[library()]) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert "valgrind" in of(findings, "malloc", "problem")
    without(findings, "malloc", "ok")


def test_heaptrack_is_no_allocator() -> None:
    need("heaptrack")
    path = Path("/usr/lib/heaptrack/libheaptrack_preload.so")  # Debian's; others have it elsewhere
    if not path.exists():
        pytest.skip(f"{path} is not there")
    what = [row[0] for row in hakmem._object(str(path), path).others]
    assert what == ["heaptrack"]


def test_a_profiler_hands_calls_on() -> None:
    profiler = library_named("libheaptrack_preload.so")
    with process(preload=[profiler, library()]) as pid:
        findings = hakmem.doctor(pid)
    assert "heaptrack is in" in of(findings, "malloc", "note")
    assert str(library()) in of(findings, "malloc", "ok")
    without(findings, "malloc", "problem")


# ---- Python


@pytest.mark.parametrize(
    ("flags", "env", "level", "says"),
    [
        ([], {}, "ok", "up to 512 bytes"),
        ([], {"PYTHONMALLOC": "malloc"}, "ok", "objects come from malloc"),
        ([], {"PYTHONMALLOC": "debug"}, "note", "debug hooks"),
        ([], {"PYTHONDEVMODE": "1"}, "note", "debug hooks"),
        (["-X", "dev"], {}, "note", "debug hooks"),
        (["-Xdev"], {}, "note", "debug hooks"),
        (["-I"], {"PYTHONMALLOC": "malloc_debug"}, "ok", "up to 512 bytes"),
        ([], {"PYTHONMALLOCSTATS": "1"}, "note", "PYTHONMALLOCSTATS"),
    ],
)
def test_what_python_does_with_objects(flags: list[str], env: dict[str, str], level: str, says: str) -> None:
    with python(*flags, "pass", env=env) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert says in of(findings, "python", level)


@pytest.mark.parametrize(("mode", "level"), [("mimalloc", "note"), ("nonsense", "problem")])
def test_modes_that_this_python_may_not_have(mode: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONMALLOC", mode)
    assert f"PYTHONMALLOC={mode}" in of(hakmem.doctor([PYTHON]), "python", level)


def test_a_python_without_the_gil(tmp_path: Path) -> None:
    made = shutil.copy(program("patient.c"), tmp_path / "python3.13t")
    with process(made) as pid:
        assert "free-threaded" in of(hakmem.doctor(pid), "python", "note")


# ---- variables


def test_variables_of_others_do_nothing_under_hakmem() -> None:
    env = {
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": "1",
        "MALLOC_TOP_PAD_": "1",
        "MALLOC_MMAP_THRESHOLD_": "1",
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "7",
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
        "MALLOC_CONF": "narenas:1",
        "_RJEM_MALLOC_CONF": "narenas:1",
        "TCMALLOC_SAMPLE_PARAMETER": "1",
        "MIMALLOC_VERBOSE": "0",
    }
    assert {name for name in env for row in hakmem._VARIABLES if name.startswith(row[0])} == set(env)
    with process(preload=[library()], env=env) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    for name in env:
        assert "it does nothing" in of(findings, name, "note")
    with process(env=env) as pid:  # glibc reads its own
        findings = hakmem.doctor(pid)
    assert {row.subject for row in findings} & set(env) == {
        name for name in env if "CONF" in name or "MALLOC_" in name[2:]
    }
    with process(preload=[library_named("libjemalloc.so.2", "mallctl")], env=env) as pid:
        without(hakmem.doctor(pid), "MALLOC_CONF")
    with process(preload=[library()], env={"GLIBC_TUNABLES": "glibc.rtld.nns=5"}) as pid:
        without(hakmem.doctor(pid), "GLIBC_TUNABLES")


def test_variables_of_hakmem() -> None:
    env = {
        "HAKMEM_PURGE_MSS": "1",
        "HAKMEM_RETAIN": "lots",
        "HAKMEM_SHARDS": "99",
        "HAKMEM_ACE": "on",
        "HAKMEM_HARDENED": "1",
    }
    with process(preload=[library()], env=env) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert "the nearest is HAKMEM_PURGE_MS" in of(findings, "HAKMEM_PURGE_MSS", "problem")
    assert "'lots' is not taken" in of(findings, "HAKMEM_RETAIN", "problem")
    assert "1 to 64 shards" in of(findings, "HAKMEM_SHARDS", "problem")
    assert of(findings, "HAKMEM_ACE", "ok")
    assert "`run --hardened` has another" in of(findings, "HAKMEM_HARDENED", "problem")
    with process(env={"HAKMEM_RETAIN": "1M", "HAKMEM_LIBRARY": "/nonexistent.so"}) as pid:
        findings = hakmem.doctor(pid)
    assert "hakmem is not there" in of(findings, "HAKMEM_RETAIN", "note")
    assert "no file /nonexistent.so" in of(findings, "HAKMEM_LIBRARY", "problem")


def test_levels_of_the_hardened_library(monkeypatch: pytest.MonkeyPatch) -> None:
    hardened = build.build("hardened", quiet=True)
    with process(preload=[hardened], env={"HAKMEM_HARDENED": "2"}) as pid:
        assert of(hakmem.doctor(pid), "HAKMEM_HARDENED", "ok")
    with process(preload=[hardened], env={"HAKMEM_HARDENED": "3"}) as pid:
        assert of(hakmem.doctor(pid), "HAKMEM_HARDENED", "problem")


# ---- the machine, of which this one has one kind only: a made one

STATUS = """Name:\tpatient
State:\tS (sleeping)
PPid:\t1
Uid:\t0\t0\t0\t0
Gid:\t0\t0\t0\t0
Groups:\t
VmSize:\t{VmSize} kB
VmData:\t{VmData} kB
VmSwap:\t{VmSwap} kB
THP_enabled:\t{thp}
Seccomp:\t0
"""


def machine(root: Path, exe: Optional[Path] = None, environ: str = "", mappings: int = 10, **status: Any) -> Path:
    """The files of a machine with a process 7, as far as they are read."""
    proc = root / "proc" / "7"
    (proc / "fd").mkdir(parents=True)
    (proc / "stat").write_text(f"7 (a b) c) {' '.join(['S', *map(str, range(40))])}")
    (proc / "status").write_text(STATUS.format(**{"VmSize": 100, "VmData": 50, "VmSwap": 0, "thp": 1, **status}))
    ours = f"7f0000000000-7f0000001000 r-xp 00000000 00:00 1 {library()}\n"
    (proc / "maps").write_text(ours * (not exe) + "1000-2000 rw-p 00000000 00:00 0\n" * (mappings - (not exe)))
    (proc / "environ").write_text("\0".join([*([] if exe else [f"LD_PRELOAD={library()}"]), environ, ""]))
    (proc / "auxv").write_bytes(struct.pack("=QQQQ", 23, 0, 0, 0))
    (proc / "cmdline").write_text("patient\0")
    (proc / "exe").symlink_to(exe or program("patient.c"))
    (proc / "root").symlink_to("/")
    write(root, "proc/meminfo", "MemTotal: 16000000 kB\nCommitLimit: 8000000 kB\nCommitted_AS: 7900000 kB\n")
    write(root, "proc/sys/vm/overcommit_memory", "0\n")
    write(root, "proc/sys/vm/max_map_count", "65530\n")
    write(root, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    write(root, "proc/7/smaps_rollup", "00-ff ---p 00 00:00 0 [rollup]\nAnonHugePages:      4096 kB\n")
    return root


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_machine_without_anything_to_say(tmp_path: Path) -> None:
    findings = hakmem._examine(7, machine(tmp_path))
    check_form(findings)
    assert [row.subject for row in findings if row.level != "ok"] == ["stats page"]


@pytest.mark.parametrize(
    ("text", "ours", "settings", "thp", "level", "says"),
    [
        (
            "[always] madvise never",
            False,
            "",
            1,
            "note",
            "4 MiB of the process are such: touching a byte may cost 2 MiB",
        ),
        ("[always] madvise never", True, "", 1, "ok", "always"),
        ("[always] madvise never", False, "", 0, "ok", "off in this process (prctl)"),
        ("always [madvise] never", True, "HAKMEM_HUGE_PAGES=1", 1, "ok", "madvise"),
        ("always madvise [never]", True, "HAKMEM_HUGE_PAGES=1", 1, "note", "HAKMEM_HUGE_PAGES does nothing"),
        ("[always] madvise never", True, "HAKMEM_HUGE_PAGES=1", 0, "note", "HAKMEM_HUGE_PAGES does nothing"),
    ],
)
def test_huge_pages(tmp_path: Path, text: str, ours: bool, settings: str, thp: int, level: str, says: str) -> None:
    root = machine(tmp_path, exe=None if ours else program("patient.c"), environ=settings, thp=thp)
    write(root, "sys/kernel/mm/transparent_hugepage/enabled", text)
    assert says in of(hakmem._examine(7, root), "huge pages", level)


def test_a_process_that_has_turned_huge_pages_off() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this kernel has no transparent huge pages")
    with python("import ctypes; assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0") as pid:
        assert "prctl" in of(hakmem.doctor(pid), "huge pages", "ok")


@pytest.mark.parametrize(("committed", "level"), [(7_900_000, "problem"), (1_000_000, "note")])
def test_strict_overcommit(tmp_path: Path, committed: int, level: str) -> None:
    root = machine(tmp_path)
    write(root, "proc/sys/vm/overcommit_memory", "2\n")
    write(root, "proc/meminfo", f"MemTotal: 16000000 kB\nCommitLimit: 8000000 kB\nCommitted_AS: {committed} kB\n")
    said = of(hakmem._examine(7, root), "overcommit", level)
    assert "strict" in said
    assert "sysctl vm.overcommit_memory=0" in said


@pytest.mark.parametrize(("most", "level"), [(65_530, "ok"), (600, "note"), (450, "problem")])
def test_the_number_of_mappings(tmp_path: Path, most: int, level: str) -> None:
    root = machine(tmp_path, mappings=430)
    write(root, "proc/sys/vm/max_map_count", f"{most}\n")
    assert f"430 of {most:,}" in of(hakmem._examine(7, root), "mappings", level)


def test_mappings_of_a_process_are_those_that_it_has() -> None:
    with python("import mmap; kept = [mmap.mmap(-1, 4096, prot=1 + i % 2 * 2) for i in range(600)]") as pid:
        (count,) = re.findall(r"^([\d,]+) of", of(hakmem.doctor(pid), "mappings"))
        with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
            assert int(count.replace(",", "")) == len(list(maps)) > 600


def test_limits_of_the_shell() -> None:
    shell = ["sh", "-c", 'ulimit -v 8000000; ulimit -d 100000; exec "$0"', program("patient.c")]
    with process(*shell, preload=[library()]) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert "ulimit -v unlimited" in of(findings, "ulimit -v")
    assert of(findings, "ulimit -d", "note").startswith("97.7 MiB, of which ")


def test_a_limit_that_is_nearly_reached(tmp_path: Path) -> None:
    root = machine(tmp_path, VmSize=99_000)
    write(root, "proc/7/limits", f"{'Max address space':26}{100_000 << 10}            unlimited            bytes\n")
    assert "of which 96.7 MiB are taken" in of(hakmem._examine(7, root), "ulimit -v", "problem")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limit", "used", "killed", "level"),
    [
        (8 << 30, 1 << 20, 0, "ok"),
        (1 << 30, 1 << 20, 0, "note"),
        (8 << 30, 7800 << 20, 0, "problem"),
        (8 << 30, 0, 2, "problem"),
    ],
)
def test_control_groups(tmp_path: Path, version: int, limit: int, used: int, killed: int, level: str) -> None:
    root = machine(tmp_path)
    place = "sys/fs/cgroup/memory/a" if version == 1 else "sys/fs/cgroup/a"
    write(root, "proc/7/cgroup", "5:devices:/elsewhere\n4:memory:/a/b\n0::/\n" if version == 1 else "0::/a/b\n")
    write(root, f"{place}/b/memory.max", "max\n")  # the limit is that of the group above
    write(root, f"{place}/{'memory.limit_in_bytes' if version == 1 else 'memory.max'}", f"{limit}\n")
    write(root, f"{place}/memory.stat", f"{'total_rss' if version == 1 else 'anon'} {used}\nfile {limit}\n")
    write(root, f"{place}/{'memory.oom_control' if version == 1 else 'memory.events'}", f"oom_kill {killed}\n")
    said = of(hakmem._examine(7, root), "cgroup", level)
    assert f"{killed} were killed" in said
    assert ("retain and cache_limit" in said) == (limit == 1 << 30)
    if level != "ok":
        assert f"HAKMEM_CACHE_LIMIT={limit >> 24}M" in said


def test_options_count_against_the_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, environ="HAKMEM_CACHE_LIMIT=16M")
    write(root, "proc/7/cgroup", "0::/a\n")
    write(root, "sys/fs/cgroup/a/memory.max", f"{1 << 30}\n")
    assert of(hakmem._examine(7, root), "cgroup", "ok")


def test_swap(tmp_path: Path) -> None:
    assert "5.0 MiB" in of(hakmem._examine(7, machine(tmp_path, VmSwap=5121)), "swap", "note")


FILTER = """
import ctypes, struct
allow = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))  # BPF: return ALLOW
program = struct.pack("=H6xQ", 1, ctypes.addressof(allow))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
"""


def test_a_filter_of_system_calls() -> None:
    try:
        with python(FILTER) as pid:
            assert "filtered" in of(hakmem.doctor(pid), "seccomp", "note")
    except AssertionError as error:
        if "seccomp" in str(error):
            raise
        pytest.skip("this kernel has no seccomp filters")


# ---- the page of statistics


def test_the_page_is_there_is_closed_or_was_refused() -> None:
    on = {"HAKMEM_STATS_PAGE": "1"}
    with process(preload=[library()], env=on) as pid:
        assert of(hakmem.doctor(pid), "stats page", "ok")
    closes = "import os; os.closerange(3, os.sysconf('SC_OPEN_MAX'))"
    with python(closes, preload=[library()], env={**on, "PYTHONMALLOC": "malloc"}) as pid:
        assert "closed its descriptor" in of(hakmem.doctor(pid), "stats page", "problem")
    shell = ["sh", "-c", 'ulimit -n 4; exec "$0"', program("patient.c")]
    with process(*shell, preload=[library()], env=on) as pid:
        assert "asked for, but not there: no descriptor" in of(hakmem.doctor(pid), "stats page", "problem")


# ---- commands


def test_a_command_that_run_could_start_and_that_is_not_started(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    findings = hakmem.doctor(["touch", str(touched)])
    check_form(findings)
    assert of(findings, "hakmem", "ok").startswith("can be preloaded: ")
    assert "_hakmem_backend" in of(findings, "malloc", "ok")
    assert not touched.exists()


@pytest.mark.parametrize("first", [f"#!{PYTHON}", "#!/usr/bin/env python3", f"#!/usr/bin/env -S A=1 {PYTHON} -I"])
def test_a_script_is_looked_at_as_what_runs_it(first: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"{first}\nraise SystemExit(1)\n")
    script.chmod(0o755)
    findings = hakmem.doctor([str(script)])
    assert of(findings, "python", "ok")
    assert of(findings, "hakmem", "ok")


def test_a_link_to_a_program_with_its_libraries_beside_it(tmp_path: Path) -> None:
    """As Java's is: the loader is asked about the program, whose $ORIGIN is not the link's directory."""
    home, elsewhere = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    elsewhere.mkdir()
    shutil.copy(library_named("libbeside.so"), home)
    command = [*cc(), str(C_DIR / "patient.c"), "-o", str(home / "tool"), "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"]
    subprocess.run([*command, f"-L{home}", "-l:libbeside.so"], check=True)
    (elsewhere / "tool").symlink_to(home / "tool")
    assert of(hakmem.doctor([str(elsewhere / "tool")]), "hakmem", "ok")
    started = [sys.executable, "-m", "hakmem", "run", "--", str(elsewhere / "tool")]
    assert succeed(started, preload=False, cwd=ROOT) == "ready\n"


def test_a_command_that_hands_its_work_to_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(program("patient.c"), tmp_path / "docker")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "another process" in of(hakmem.doctor(["docker", "run", "x"]), "hakmem", "problem")


def test_what_another_user_chose_reaches_no_terminal_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[2J\udcff"
    shutil.copy(program("patient.c"), odd)
    with process(odd, "\x1b]0;x\x07", env={"HAKMEM_\x1b[m\n": "1", "HAKMEM_RETAIN": "\x9b\n1"}) as pid:
        findings = hakmem.doctor(pid)
    check_form(findings)
    assert all(text.isprintable() for row in findings for text in row)
    assert "start its command with" in of(findings, "hakmem", "note")


def test_a_library_whose_path_ld_preload_cannot_name(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    copy = shutil.copy(library(), place)
    done = cli("--fmt", "json", "--", "true", also={"HAKMEM_LIBRARY": str(copy)})
    (row,) = [row for row in json.loads(done.stdout) if row["level"] == "problem"]
    assert "LD_PRELOAD cannot name" in row["found"]
    assert done.returncode == 1


def test_what_is_no_program(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    text.chmod(0o755)
    assert "neither an ELF program nor a script" in of(hakmem.doctor([str(text)]), "hakmem", "problem")
    with pytest.raises(FileNotFoundError, match="no program 'no-such-program'"):
        hakmem.doctor(["no-such-program"])
    for mistake in ("ls", []):
        with pytest.raises(ValueError, match="a command is a list of words, not"):
            hakmem.doctor(mistake)


def test_preloads_of_a_command_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nonexistent/thing.so")
    assert "its loader does not take it" in of(hakmem.doctor([str(program("patient.c"))]), "LD_PRELOAD", "note")


# ---- the command line, and processes that cannot be looked at


def cli(*words: Any, also: Optional[dict[str, str]] = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hakmem", "doctor", *map(str, words)]
    return subprocess.run(
        command, env=environment(also), cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip


def test_the_table_the_rows_and_the_status() -> None:
    done = cli("--", "true")
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[0].split() == ["level", "subject", "found"]
    with process(env={"HAKMEM_NO_SUCH": "1"}) as pid:
        done = cli(pid)
        rows = json.loads(cli(pid, "--fmt", "json").stdout)
    assert done.returncode == 1
    assert re.search(r"problem +HAKMEM_NO_SUCH.*\n +-> the nearest is HAKMEM_", done.stdout)
    assert [hakmem.Finding(**row).subject for row in rows if row["level"] == "problem"] == ["HAKMEM_NO_SUCH"]
    assert cli("--no-such-flag").returncode == 2
    assert cli("--fmt", "tsv", "--", "ls", "-l", "--color").returncode == 0


def refusal(*words: Any) -> str:
    done = cli(*words)
    assert done.returncode == 1, done
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    return line


def test_a_process_that_is_dead_or_never_was() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert refusal(ended.pid) == f"hakmem: doctor: there is no process {ended.pid}, or no longer"
    assert "there is no process" in refusal(10**30)
    assert "no program 'nonsense'" in refusal("nonsense")


def test_a_zombie() -> None:
    with subprocess.Popen(["true"]) as ended:
        while Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.001)
        with pytest.raises(ValueError, match="a zombie"):
            hakmem.doctor(ended.pid)


def test_a_thread_of_the_kernel() -> None:
    kernel = Path("/proc/2/status")
    if not kernel.exists() or "VmSize" in kernel.read_text():
        pytest.skip("no thread of the kernel is seen from here")
    assert "is part of the kernel" in refusal(2)


NOBODYS = f"import os; os.geteuid() or (os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY}))"


def refusal_to_nobody(pid: int) -> str:
    """What doctor says of a process as a user without rights."""
    code = f"import hakmem, sys; {NOBODYS}; sys.exit(hakmem.main(['doctor', '{pid}']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    return line


def test_a_process_of_another_user() -> None:
    if os.geteuid():
        pytest.skip("only root can be another user, too")
    with process() as pid:
        assert f"process {pid} is root's: only that user and root may look into it" in refusal_to_nobody(pid)


def test_a_process_that_is_closed_to_its_own_user() -> None:
    with python(f"import ctypes; {NOBODYS}; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)") as pid:  # PR_SET_DUMPABLE
        assert f"only root may look into process {pid}: it has changed its user, forbidden it" in refusal_to_nobody(pid)


def test_a_process_that_ends_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("_pairs", "_object", "_check_hakmem", "_check_page"):
        original = getattr(hakmem, place)
        with process() as pid:

            def ends(*arguments: Any, original: Any = original, pid: int = pid) -> Any:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                return original(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(hakmem, place, ends)
                if place.startswith("_check"):
                    checks = [ends if check is original else check for check in hakmem._CHECKS]
                    patch.setattr(hakmem, "_CHECKS", checks)
                with pytest.raises(hakmem.HakmemError, match=f"no process {pid}, or no longer"):
                    hakmem.doctor(pid)


def test_a_preloaded_python_sees_itself() -> None:
    said = succeed([PYTHON, "-c", "import hakmem; print([row for row in hakmem.doctor() if row.level == 'problem'])"],
                   env={"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert said == "[]\n"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)  # so that nothing waits here, whatever is tried
    try:
        os.write(end, library().read_bytes()[:4096])
        assert hakmem._object(str(library()), pipe).kind == b""
    finally:
        os.close(end)


def test_rubbish_instead_of_a_program_is_no_error(tmp_path: Path) -> None:
    """Every ELF header with a byte changed, and cut off anywhere, gives an object and no exception."""
    image = library().read_bytes()
    path = tmp_path / "rubbish"
    for at in range(64):
        path.write_bytes(image[:at] + bytes([image[at] ^ 0xFF]) + image[at + 1 : 20_000])
        assert hakmem._object("x", path).path == "x"
        path.write_bytes(image[: at * 40])
        assert hakmem._object("x", path).path == "x"
