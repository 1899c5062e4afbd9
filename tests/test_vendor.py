"""The one file that `build.py vendor` writes is hakmem.py with the sources inside, and needs nothing beside it."""

from __future__ import annotations

import ast
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Callable

import pytest

import build
import hakmem

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SOURCES = ("build.py", "_hakmem_backend.c")
USE = "import hakmem; hakmem.free(hakmem.malloc(9)); print(hakmem.mode().path)"


@pytest.fixture(scope="module")
def text() -> str:
    """The vendored file, as this checkout makes it."""
    return build.vendored()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests here share, as the programs of one user do."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(tmp_path: Path, text: str) -> Path:
    """A directory that has the vendored file and nothing else."""
    directory = tmp_path / "place"
    directory.mkdir()
    (directory / "hakmem.py").write_bytes(text.encode())
    return directory


@pytest.fixture
def alone(run: Run, cache: Path) -> Run:
    """Runs Python where nothing leads to this checkout or to a library."""

    def alone(*arguments: Any, **keywords: Any) -> subprocess.CompletedProcess[str]:
        settings = {"PYTHONPATH": None, "HAKMEM_LIBRARY": None, "XDG_CACHE_HOME": cache, "PYTHONDONTWRITEBYTECODE": 1}
        return run(sys.executable, *arguments, **{**settings, **keywords})

    return alone


@pytest.fixture
def tree(tmp_path: Path, root: Path) -> Path:
    """A copy of all that vendoring reads, to change."""
    directory = tmp_path / "tree"
    directory.mkdir()
    for name in ("hakmem.py", *SOURCES):
        shutil.copy(root / name, directory)
    return directory


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


# ---- what is in it


def embedded(text: str) -> tuple[ast.AnnAssign, dict[str, str]]:
    (statement,) = (
        statement
        for statement in ast.parse(text).body
        if isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", "") == "_EMBEDDED"
    )
    assert statement.value
    return statement, ast.literal_eval(statement.value)


def test_the_texts_inside_are_the_sources_and_the_rest_is_hakmem_py(text: str, root: Path) -> None:
    statement, texts = embedded(text)
    assert {name: text.encode() for name, text in texts.items()} == {
        name: (root / name).read_bytes() for name in SOURCES
    }
    lines = text.split("\n")
    lines[statement.lineno - 1 : statement.end_lineno] = [build.EMPTY]
    header = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    assert "\n".join(lines[header:]) == (root / "hakmem.py").read_text(encoding="utf-8")


def test_people_can_read_the_sources_in_it(text: str, root: Path) -> None:
    for name in SOURCES:
        assert (root / name).read_text(encoding="utf-8") in text


def test_the_header_says_what_it_was_made_of(text: str, root: Path) -> None:
    header = [line for line in text.splitlines()[:12] if line.startswith("#")]
    assert f"`python build.py vendor DIR` from hakmem {hakmem.__version__}: do not edit" in header[0]
    words = [line.split() for line in header]
    sums = {line[2]: line[1] for line in words if len(line) == 3 and len(line[1]) == 64}
    assert sums == {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in ("hakmem.py", *SOURCES)}
    assert ast.get_docstring(ast.parse(text)) == ast.get_docstring(ast.parse((root / "hakmem.py").read_text()))


def test_a_shebang_stays_the_first_line(tree: Path, run: Run, tmp_path: Path) -> None:
    change(tree / "hakmem.py", '"""hakmem: a', '#!/usr/bin/env python3\n"""hakmem: a')
    run(sys.executable, tree / "build.py", "vendor", tmp_path / "made")
    lines = (tmp_path / "made" / "hakmem.py").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env python3"
    assert "do not edit" in lines[1]


@pytest.mark.parametrize("added", ["\r\n", "/* ''' \"\"\" */\n", '/* """ \\', "/* \0 */\n"])
def test_sources_that_would_not_survive_as_literals_are_refused(
    tree: Path, run: Run, tmp_path: Path, added: str
) -> None:
    with open(tree / "_hakmem_backend.c", "ab") as source:
        source.write(added.encode())
    done = run(sys.executable, tree / "build.py", "vendor", tmp_path / "made", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "made" / "hakmem.py").exists()


# ---- writing and checking it


def test_vendor_writes_one_file_and_prints_its_path(run: Run, root: Path, tmp_path: Path, text: str) -> None:
    made = tmp_path / "project" / "_vendor"
    for _ in range(2):
        assert run(sys.executable, root / "build.py", "vendor", made).stdout == f"{made / 'hakmem.py'}\n"
        assert [path.name for path in made.iterdir()] == ["hakmem.py"]
        assert (made / "hakmem.py").read_bytes() == text.encode()


def test_check_tells_whether_the_file_is_current(tree: Path, run: Run, tmp_path: Path) -> None:
    made = tmp_path / "made"

    def check() -> list[str]:
        done = run(sys.executable, tree / "build.py", "vendor", "--check", made, check=False)
        assert done.stdout == ""
        assert done.returncode == (1 if done.stderr else 0)
        return done.stderr.splitlines()

    assert check() == [f"build.py: {made / 'hakmem.py'} is missing"]
    assert not made.exists()
    run(sys.executable, tree / "build.py", "vendor", made)
    assert check() == []
    for source in ("hakmem.py", *SOURCES):
        with open(tree / source, "a", encoding="utf-8") as file:
            file.write("\n" if source == "_hakmem_backend.c" else "# changed\n")
        (line,) = check()
        assert f"run: python build.py vendor {made}" in line
        run(sys.executable, tree / "build.py", "vendor", made)
        assert check() == []
    change(made / "hakmem.py", "def malloc", "def  malloc")
    assert len(check()) == 1


def test_vendor_overwrites_nothing_that_it_has_not_made(tree: Path, run: Run) -> None:
    before = (tree / "hakmem.py").read_bytes()
    done = run(sys.executable, tree / "build.py", "vendor", tree, check=False)
    assert done.returncode == 1
    assert done.stderr == f"build.py: {tree / 'hakmem.py'} was not made by this command; move it away first\n"
    assert (tree / "hakmem.py").read_bytes() == before


def test_vendor_is_no_variant_and_needs_a_directory(run: Run, root: Path) -> None:
    assert "DIR" in run(sys.executable, root / "build.py", "vendor", check=False).stderr
    assert "no variant 'vendor'" in run(sys.executable, root / "build.py", "release", "vendor", check=False).stderr


# ---- using it


@pytest.fixture
def logged(tmp_path: Path) -> tuple[Path, Path]:
    """A compiler that notes each time it is started, and its notes."""
    log, compiler = tmp_path / "compilations", tmp_path / "logged-cc"
    real = shlex.join(build.find_compiler())
    compiler.write_text(f'#!/bin/sh\necho compiled >>{log}\nsleep 1\nexec {real} "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    return compiler, log


@pytest.mark.usefixtures("quick_compiler")
def test_24_processes_at_once_compile_once_from_a_directory_that_cannot_be_written_to(
    place: Path, tmp_path: Path, logged: tuple[Path, Path], root: Path
) -> None:
    compiler, log = logged
    place.chmod(0o555)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "CC": str(compiler)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # root may write anywhere
    for name in ("HAKMEM_LIBRARY", "PYTHONPATH"):
        environment.pop(name, None)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", USE],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(24)
    ]
    results = {process.communicate(timeout=300) for process in started}
    assert len(results) == 1
    path, error = results.pop()
    assert error == ""
    assert log.read_text(encoding="utf-8").split() == ["compiled"]
    library = Path(path.strip())
    cache = tmp_path / "cache" / "hakmem"
    shown = {name.name for name in cache.iterdir() if not name.name.startswith(".")}
    assert shown == {library.name, library.with_suffix(".c").name}
    assert not list(cache.glob(".*.new"))
    assert (cache / library.with_suffix(".c").name).read_bytes() == (root / "_hakmem_backend.c").read_bytes()
    assert [file.name for file in place.iterdir()] == ["hakmem.py"]


@pytest.mark.usefixtures("quick_compiler")
def test_nothing_beside_it_is_used(place: Path, alone: Run, cache: Path, library: Path) -> None:
    for name in ("build.py", "_hakmem_build.py"):
        (place / name).write_text("raise SystemExit('_hakmem_backend.c: ran a stranger')", encoding="utf-8")
    for name in ("_hakmem_backend.c", "_bench_workloads.c"):
        (place / name).write_text("#error a stranger's source\n", encoding="utf-8")
    shutil.copy(library, place / "_hakmem_backend.so")
    before = {file: file.read_bytes() for file in place.iterdir()}
    assert Path(alone("-c", USE, cwd=place).stdout.strip()).parent == cache / "hakmem"
    debug = "import hakmem; print(hakmem.mode().variant)"
    done = alone("hakmem.py", "run", "--variant", "debug", "--", sys.executable, "-c", debug, cwd=place)
    assert (done.stdout, done.stderr) == ("debug\n", "")
    for call, said in [("workloads()", "not inside a vendored"), ("build()", "into the cache only")]:
        done = alone("-c", f"import hakmem; hakmem._build_module().{call}", cwd=place, check=False)
        assert said in done.stderr.splitlines()[-1]
    assert {file: file.read_bytes() for file in place.iterdir()} == before


def test_its_command_line(place: Path, alone: Run, cache: Path) -> None:
    library = alone("hakmem.py", "path", cwd=place).stdout.strip()
    assert Path(library).parent == cache / "hakmem"
    assert alone(place / "hakmem.py", "run", "--", "sh", "-c", "echo $LD_PRELOAD").stdout.strip() == library
    assert "HAKMEM_PURGE_MS" in alone("-m", "hakmem", "config", cwd=place).stdout


def test_as_a_module_of_a_package_or_of_an_archive(place: Path, alone: Run, cache: Path, text: str) -> None:
    package = place / "project" / "_vendor"
    package.mkdir(parents=True)
    (place / "hakmem.py").rename(package / "hakmem.py")
    source = (
        "from project._vendor import hakmem\n"
        "owner = hakmem.owner_of(hakmem.malloc(100))\n"
        "print(owner.tier, type(owner).__module__, hakmem.memory_stats()['allocs'] > 0)\n"
    )
    assert alone("-c", source, cwd=place).stdout == "tiny project._vendor.hakmem True\n"
    done = alone("-m", "project._vendor.hakmem", "path", cwd=place)
    assert Path(done.stdout.strip()).parent == cache / "hakmem"
    with zipfile.ZipFile(place / "all.zip", "w") as archive:
        archive.writestr("hakmem.py", text)
    assert alone("-c", USE, cwd=place, PYTHONPATH="all.zip").stdout == done.stdout


@pytest.mark.usefixtures("quick_compiler")
def test_two_versions_on_one_machine_and_in_one_process(
    place: Path, tree: Path, alone: Run, run: Run, cache: Path
) -> None:
    for name in ("hakmem.py", "_hakmem_backend.c"):
        change(tree / name, f'"{hakmem.__version__}"', '"99.1"')
    run(sys.executable, tree / "build.py", "vendor", place / "other")
    source = (
        "import hakmem\n"
        "from other import hakmem as other\n"
        "for module in (hakmem, other):\n"
        "    p = module.malloc(100)\n"
        "    print(module.__version__, module._about.version.decode(), module.mode().how, module.mode().path)\n"
        "    module.free(p)\n"
        "print(len(hakmem.class_table()) == len(other.class_table()))\n"
    )
    ours, theirs, same = (line.split() for line in alone("-c", source, cwd=place, PYTHONPATH=place).stdout.splitlines())
    assert ours[:3] == [hakmem.__version__, hakmem.__version__, "loaded"]
    assert theirs[:3] == ["99.1", "99.1", "loaded"]
    assert ours[3] != theirs[3]
    assert {Path(ours[3]).parent, Path(theirs[3]).parent} == {cache / "hakmem"}
    assert same == ["True"]


def test_without_any_other_package(place: Path, alone: Run) -> None:
    source = (
        "import importlib.util, json, hakmem\n"
        "p = hakmem.malloc(100)\n"
        "print(hakmem.owner_of(p).tier, hakmem.memory_stats()['live_blocks'])\n"
        "hakmem.free(p)\n"
        "print(json.loads(hakmem.report('classes', 'json'))['view'])\n"
        "print([importlib.util.find_spec(name) for name in ('psutil', 'tabulate')])\n"
    )
    done = alone("-S", "-c", source, cwd=place)
    assert done.stdout.splitlines() == ["tiny 1", "classes", "[None, None]"]


# ---- nowhere to compile


@pytest.mark.parametrize("home", ["a file", "relative"])
def test_without_a_place_to_compile_the_error_says_what_to_set(
    place: Path, alone: Run, tmp_path: Path, home: str, library: Path
) -> None:
    (tmp_path / "a file").write_text("", encoding="utf-8")
    empty = tmp_path / "tmp"
    empty.mkdir()
    settings = {
        "HOME": tmp_path / home if home == "a file" else home,
        "XDG_CACHE_HOME": "not/absolute",
        "TMPDIR": empty,
        "cwd": place,
    }
    done = alone("-c", USE, check=False, **settings)
    lines = done.stderr.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("ImportError: no hakmem library"))
    assert len(lines) - first == 2
    assert "XDG_CACHE_HOME" in lines[-1]
    assert "HAKMEM_LIBRARY" in lines[-1]
    assert not list(empty.iterdir())
    assert alone("-c", USE, HAKMEM_LIBRARY=library, **settings).stdout.strip() == str(library)


def test_without_a_compiler_it_says_how_to_get_one(place: Path, alone: Run, tmp_path: Path) -> None:
    done = alone("-c", USE, cwd=place, check=False, XDG_CACHE_HOME=tmp_path / "new", PATH="/nonexistent", CC=None)
    assert "apt-get install gcc" in done.stderr.splitlines()[-1]
