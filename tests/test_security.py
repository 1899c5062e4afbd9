"""Programs with another's rights ignore every option, and nothing is written to any file unless it is asked for."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from _helpers import C_DIR, FLAGS, LANGUAGE, ROOT, cc, environment, library, need, program, run, succeed, text

# ---- setuid, setgid and capabilities

CALLER, OTHER = 65534, 65533  # neither has to have a name
CAP_CHOWN = struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0)  # revision 2, effective; permitted: the first capability


@pytest.fixture(scope="module")
def linked() -> Iterator[Path]:
    """A program that prints the options and is linked with the library, where others may start it."""
    if os.geteuid():
        pytest.skip("only root can make programs setuid and start them as somebody else")
    place = Path(tempfile.mkdtemp(prefix="hakmem-secure-"))
    try:
        if os.statvfs(place).f_flag & os.ST_NOSUID:
            pytest.skip(f"{place} is on a file system mounted nosuid")
        place.chmod(0o755)
        shutil.copy(library(), place / "library.so")
        command = [*cc(), *LANGUAGE[".c"], *FLAGS, C_DIR / "options.c", "-o", place / "program"]
        command += ["-Wl,--no-as-needed", place / "library.so", "-ldl"]  # its name has a slash, so that it is found
        subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=120)
        yield place / "program"
    finally:
        shutil.rmtree(place)


def show(path: Path, settings: dict[str, str]) -> tuple[dict[str, list[str]], str]:
    """What a program linked with the library says as another user: the options' lines by variable, and stderr."""
    try:
        done = subprocess.run(
            [str(path), "show"],
            env=environment(settings),
            cwd=path.parent,
            user=CALLER,
            group=CALLER,
            extra_groups=[],
            capture_output=True,
            timeout=60,
            check=False,
        )
    except PermissionError as error:
        pytest.skip(f"it cannot be started as another user: {error}")
    assert done.returncode == 0, text(done.stderr)
    lines = [line.split() for line in text(done.stdout).splitlines()]
    return {line[1]: line for line in lines}, text(done.stderr)


def settings_for(rows: dict[str, list[str]]) -> dict[str, str]:
    """Each option set to something else than its default, and names and values that are complained of."""
    found = {}
    for env, (_, _, kind, _, default, least, most, _) in rows.items():
        if least != most:
            special = {"bytes": "67108864", "text": "1"}  # of a text the length is shown
            found[env] = special.get(kind, most if default == least else least)
    return {**found, "HAKMEM_NO_SUCH_OPTION": "1", "HAKMEM_PURGE_MSS": "1"}


@pytest.mark.parametrize("how", ["setuid root", "setuid", "setgid", "capability"])
def test_a_program_with_anothers_rights_ignores_every_option_and_says_nothing(linked: Path, how: str) -> None:
    rows, _ = show(linked, {})
    settings = settings_for(rows)
    assert "HAKMEM_PURGE_MS" in rows
    path = linked.with_name(how.replace(" ", "-"))
    shutil.copy(linked, path)
    path.chmod(0o755)
    changed, said = show(path, settings)  # without those rights it does obey, and does complain
    assert all(changed[env][-1] == settings[env] != rows[env][-1] for env in settings if env in rows)
    assert "HAKMEM_NO_SUCH_OPTION" in said
    assert "HAKMEM_PURGE_MSS" in said
    if how == "capability":
        try:
            os.setxattr(path, "security.capability", CAP_CHOWN)
        except OSError as error:
            pytest.skip(f"{path.parent} takes no file capabilities: {error}")
    else:
        os.chown(path, OTHER if how == "setuid" else 0, OTHER if how == "setgid" else 0)
        path.chmod(0o2755 if how == "setgid" else 0o4755)
    assert show(path, settings) == (rows, "")
    garbage = dict.fromkeys(rows, "garbage")
    assert show(path, garbage) == (rows, "")


# ---- files

# whatever makes, changes or removes a file, or starts a program that could; but for the report at exit (open) and the
# stats page, a file in memory (ftruncate), which is there where it is asked for
ASKED_FOR = {"open", "ftruncate"}
FORBIDDEN = """open64 openat openat64 creat creat64 fopen fopen64 freopen freopen64 fdopen mkstemp mkstemp64
    mkostemp mkdtemp mktemp tmpnam tempnam tmpfile tmpfile64 shm_open memfd_create mkdir mkdirat mknod mkfifo
    rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat remove truncate truncate64
    ftruncate64 socket system popen execve execvp execv posix_spawn posix_spawnp dlopen dlmopen""".split()


def test_the_library_imports_nothing_that_could_make_a_file() -> None:
    imported = succeed([need("nm"), "-D", "--undefined-only", library()], preload=False)
    names = {line.split()[-1].partition("@")[0] for line in imported.splitlines()}
    assert {"mmap", "write"} <= names  # this is how they are listed
    assert not names & set(FORBIDDEN)
    assert names >= ASKED_FOR
    source = (ROOT / "_hakmem_backend.c").read_text(encoding="utf-8")
    called = {"SYS_fstat", "SYS_futex", "SYS_getrandom", "SYS_gettid", "SYS_memfd_create", "SYS_statx"}
    assert set(re.findall(r"\bSYS_\w+", source)) == called
    assert len(re.findall(r"\b(?:open|ftruncate)\(", source)) == len(ASKED_FOR)


def test_no_name_under_a_directory_that_everybody_can_write_to() -> None:
    for name in ("_hakmem_backend.c", "hakmem.py", "build.py", "setup.py"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            code = line.split("#")[0] if name.endswith(".py") else line
            assert not re.search(r"/tmp|/var/tmp|/dev/shm|gettempdir|mktemp\b", code), f"{name}: {line}"


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Empty directories where programs are used to leave things, as environment variables."""
    made = {}
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "PWD"):
        (tmp_path / name).mkdir(mode=0o700)
        made[name] = str(tmp_path / name)
    return made


def left_in(places: dict[str, str]) -> list[Path]:
    return [path for place in places.values() for path in Path(place).rglob("*")]


def test_a_preloaded_program_opens_no_file_to_write(places: dict[str, str], tmp_path: Path) -> None:
    command = [program("model.c", "-O2"), 1, 3000, 100]
    settings = {**places, "HAKMEM_PURGE_MS": "0"}
    succeed(command, env=settings, cwd=Path(places["PWD"]))
    assert left_in(places) == []
    log = tmp_path / "log"
    tracer = [need("strace"), "-f", "-o", log, "-E", f"LD_PRELOAD={library()}", "-e"]
    tracer += ["trace=%file,write,writev,pwrite64,memfd_create,socket,ftruncate"]
    done = run([*tracer, *command], env=settings, preload=False, cwd=Path(places["PWD"]))
    if done.returncode and "ptrace" in text(done.stderr):
        pytest.skip(f"strace may not trace: {text(done.stderr).splitlines()[0]}")
    assert done.returncode == 0, text(done.stderr)
    calls = log.read_text(errors="replace").splitlines()
    assert any(library().name in call for call in calls)
    wrote = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|memfd_create|mkdir|rename|unlink|link\(|truncate|socket\(")
    assert [call for call in calls if wrote.search(call)] == []
    written = [call for call in calls if re.search(r"\d+ +p?writev?(64)?\(", call)]
    assert all(re.search(r"write\([12],", call) for call in written), written


IMPORT = """
import json, os, sys
seen, changes = [], ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork",
    "socket.__new__", "tempfile.mkstemp", "tempfile.mkdtemp")
def hook(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        seen.append(str(path))
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            changed.append([event, str(path)])
    elif event in changes:
        changed.append([event, str(arguments)])
changed = []
sys.addaudithook(hook)
import hakmem
with hakmem.Buffer(1000) as buffer, hakmem.RssMonitor(0.01) as monitor:
    buffer[0] = 1
hakmem.config.purge_ms = 500
hakmem.report("summary", "json"), hakmem.trim(), hakmem.memory_snapshot()
print(json.dumps([len(seen), hakmem.mode().how, changed]))
"""


@pytest.mark.parametrize("preload", [False, True])
def test_importing_and_using_the_module_writes_no_file(places: dict[str, str], preload: bool) -> None:
    settings = {**places, "PYTHONPATH": str(ROOT), "HAKMEM_LIBRARY": str(library()), "PYTHONDONTWRITEBYTECODE": "1"}
    said = succeed([sys.executable, "-c", IMPORT], env=settings, preload=preload, cwd=Path(places["PWD"]))
    opened, how, changed = json.loads(said)
    assert opened > 0
    assert how == ("preloaded" if preload else "loaded")
    assert changed == []
    assert left_in(places) == []


@pytest.mark.usefixtures("quick_compiler")
def test_importing_the_module_beside_its_library_writes_no_file(places: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "checkout"
    place.mkdir()
    for name in ("hakmem.py", "build.py", "_hakmem_backend.c"):
        shutil.copy(ROOT / name, place)
    subprocess.run([sys.executable, place / "build.py"], check=True, capture_output=True, timeout=120)
    settings = {**places, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    said = succeed([sys.executable, "-c", IMPORT], env=settings, preload=False, cwd=Path(places["PWD"]))
    assert json.loads(said)[1:] == ["loaded", []]
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert left_in(places) == []
