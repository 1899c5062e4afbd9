"""The sdist has all that the README's commands need, and the wheel made from it works without a compiler."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest
import tabulate

import hakmem

Run = Callable[..., "subprocess.CompletedProcess[str]"]
JUNK = ".*.stamp .*.lock .*.new *.so *.pyc *.egg-info .?* __pycache__ build dist _bench_workloads".split()
TAG = f"py3-none-{re.sub('[^a-z0-9_]', '_', sysconfig.get_platform())}"
OLDEST_GLIBC = (2, 17)  # as setup.py says
NEEDED = {"setuptools": (70, 1), "pip": (22, 3)}


def shipped(root: Path) -> set[str]:
    """The files of the project: those that git tracks; in an unpacked sdist, those that nobody's tools have made."""
    if (root / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False)
        if listed.returncode == 0:  # git refuses a checkout that another user owns
            return {name for name in listed.stdout.splitlines() if (root / name).exists()}
    made = shutil.ignore_patterns(*JUNK)
    found = {".ci/run", ".clang-format"}
    for directory, directories, files in os.walk(root):
        directories[:] = [name for name in directories if name not in made(directory, directories)]
        kept = set(files) - made(directory, files)
        found |= {str(Path(directory, name).relative_to(root)) for name in kept}
    return found


def build_backend(call: str, tree: Path, target: Path) -> Path:
    """What pip and PyPA's build do, without an environment to fetch things into."""
    source = f"import sys, setuptools.build_meta as backend; backend.{call}(sys.argv[1])"
    command = [sys.executable, "-c", source, str(target)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The sdist of this tree, made in a copy of it."""
    for package, oldest in NEEDED.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "0.0"
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < oldest:
            pytest.skip(f"{package} {version} cannot do this: pip install {package}>={'.'.join(map(str, oldest))}")
    tree = tmp_path_factory.mktemp("tree")
    for name in shipped(root):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tree / name)
    return build_backend("build_sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sdist: Path) -> Path:
    """The wheel, made from the sdist as `pip install hakmem-VERSION.tar.gz` makes it."""
    directory = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(directory)
    (tree,) = directory.iterdir()
    return build_backend("build_wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """Where the wheel lies in an environment that has nothing else."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = environment.glob("lib/python*/site-packages")
    return found


@pytest.fixture
def installed(site_packages: Path, run: Run, tmp_path: Path) -> Run:
    """Runs the Python that has the wheel, away from the checkout, with a cache of its own and no compiler."""
    python = site_packages.parents[2] / "bin" / "python"

    def installed(*arguments: Any, **keywords: Any) -> subprocess.CompletedProcess[str]:
        settings = {"PYTHONPATH": None, "HAKMEM_LIBRARY": None, "XDG_CACHE_HOME": tmp_path / "cache"}
        none = {"PATH": "/nonexistent", "CC": None, "cwd": tmp_path}
        return run(python, *arguments, **{**settings, **none, **keywords})

    return installed


# ---- what is in them


def test_the_sdist_has_every_file_of_the_project(sdist: Path, root: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {member.name.split("/", 1)[1]: member for member in archive.getmembers() if member.isfile()}
    assert shipped(root) - set(members) <= {".gitignore"}
    assert not [name for name in members if name.endswith((".so", ".pyc", ".stamp"))]
    assert members[".ci/run"].mode & 0o111


def test_the_wheel_is_for_every_python_of_this_kind_of_machine(wheel: Path) -> None:
    assert wheel.name == f"hakmem-{hakmem.__version__}-{TAG}.whl"
    with zipfile.ZipFile(wheel) as archive:
        said = archive.read(f"hakmem-{hakmem.__version__}.dist-info/WHEEL").decode().splitlines()
        about = archive.read(f"hakmem-{hakmem.__version__}.dist-info/METADATA").decode().splitlines()
    assert f"Tag: {TAG}" in said
    assert "Root-Is-Purelib: false" in said
    assert "Requires-Python: >=3.9" in about
    assert {line.split()[-1] for line in about if line.startswith("Provides-Extra")} == {"plot", "prometheus", "test"}


def test_the_wheel_has_the_library_and_the_sources_under_names_of_its_own(wheel: Path, root: Path) -> None:
    sources = {
        "hakmem.py": "hakmem.py",
        "_hakmem_backend.c": "_hakmem_backend.c",
        "_hakmem_build.py": "build.py",
        "_hakmem_bench.py": "bench.py",
        "_bench_workloads.c": "_bench_workloads.c",
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == {*sources, "_hakmem_backend.so"}
        for name, source in sources.items():
            assert archive.read(name) == (root / source).read_bytes(), name


def test_python_and_c_have_one_version(root: Path) -> None:
    found = re.search(r'^#define HAK_VERSION "(.*)"$', (root / "_hakmem_backend.c").read_text(), re.MULTILINE)
    assert found
    assert found[1] == hakmem.__version__
    assert f"## {hakmem.__version__}" in (root / "CHANGELOG.md").read_text()


def test_the_library_needs_no_newer_system_than_setup_py_says(run: Run, site_packages: Path, root: Path) -> None:
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("nm and readelf (binutils) are missing")
    library = site_packages / "_hakmem_backend.so"
    assert set(re.findall(r"\(NEEDED\).*\[(.*?)\]", run("readelf", "-d", library).stdout)) <= {
        "libc.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
    }  # fmt: skip
    undefined = re.findall(r" (\w+)@GLIBC_([\d.]+)", run("nm", "-D", "--undefined-only", library).stdout)
    versions = {name: tuple(map(int, version.split("."))) for name, version in undefined}
    assert "mmap" in versions
    # glibc 2.34 moved libpthread and libdl into libc, and gave their functions that version
    moved = {name for name in versions if name.startswith(("pthread_", "dl"))}
    newer = {name for name, version in versions.items() if version[:2] > OLDEST_GLIBC} - moved
    assert not newer
    assert "glibc {}.{}".format(*OLDEST_GLIBC) in (root / "setup.py").read_text()


# ---- using them


def test_the_installed_wheel_works_without_a_compiler(installed: Run, site_packages: Path, tmp_path: Path) -> None:
    library = site_packages / "_hakmem_backend.so"
    source = (
        "import hakmem\n"
        "p = hakmem.malloc(100)\n"
        "print(hakmem.owner_of(p).tier, hakmem.memory_stats()['live_blocks'], hakmem.__file__)\n"
        "hakmem.free(p)\n"
    )
    assert installed("-c", source).stdout.split() == ["tiny", "1", str(site_packages / "hakmem.py")]
    assert installed("-m", "hakmem", "path").stdout == f"{library}\n"
    attach = "import hakmem; print(hakmem.mode().how, hakmem.mode().path)"
    python = site_packages.parents[2] / "bin" / "python"
    assert installed("-m", "hakmem", "run", "--", python, "-c", attach).stdout == f"preloaded {library}\n"
    assert installed("-m", "hakmem", "run", "--", shutil.which("true")).stdout == ""
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("quick_compiler")
def test_the_installed_copy_builds_the_rest_into_the_cache(installed: Run, site_packages: Path, tmp_path: Path) -> None:
    def files() -> set[Path]:
        return {path for path in site_packages.rglob("*") if "__pycache__" not in path.parts}

    before = files()
    compiler = {"PATH": os.environ["PATH"], "CC": os.environ.get("CC")}
    show = ["-m", "hakmem", "run", "--variant", "debug", "--", "sh", "-c", "echo $LD_PRELOAD"]
    assert "apt-get install gcc" in installed(*show, check=False).stderr
    library = installed(*show, **compiler).stdout.strip()
    assert Path(library).parent == tmp_path / "cache" / "hakmem"
    assert installed(*show, PATH=os.environ["PATH"], CC="no-such-compiler").stdout.strip() == library
    make = "import hakmem; print(hakmem._build_module().workloads())"
    workloads = installed("-c", make, **compiler).stdout.strip()
    assert Path(workloads).parent == tmp_path / "cache" / "hakmem"
    assert os.access(workloads, os.X_OK)
    assert files() == before


def test_the_installed_copy_can_vendor_itself(installed: Run, site_packages: Path, tmp_path: Path) -> None:
    installed(site_packages / "_hakmem_build.py", "vendor", tmp_path / "made")
    done = installed(site_packages / "_hakmem_build.py", "vendor", "--check", tmp_path / "made")
    assert (done.stdout, done.stderr) == ("", "")


def test_the_installed_copy_runs_the_benchmark(installed: Run, tmp_path: Path) -> None:
    packages = {Path(str(module.__file__)).parent.parent for module in (psutil, tabulate)}
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, packages))}
    short = ["mixed", "-n", "1", "--seconds", "0.01", "--threads", "1", "--only", "system,hakmem", "--json", "-"]
    done = installed("-m", "hakmem", "bench", *short, **environment)
    rows = json.loads(done.stdout)["rows"]
    assert [(row["allocator"], row["failure"]) for row in rows] == [("system", None), ("hakmem", None)]
    assert rows[1]["hit_rate"] > 0
    assert "python -m hakmem bench" in installed("-m", "hakmem", "bench", "--help", **environment).stdout
