"""Package hakmem with its compiled library; pyproject.toml holds everything that is not about compiling.

`pip install .` puts the library beside hakmem.py, and the sources, so that an installed copy can build the other
variants and run the benchmark. `pip install -e .` builds the library in the source tree.

The wheel's tag is py3-none-linux_MACHINE, which pip installs on machines like this one, but PyPI does not take. For
PyPI, build in the oldest manylinux image wanted, and let `auditwheel repair` give the wheel its tag. The library
needs nothing but libc, and of that nothing newer than glibc 2.17; linked on glibc 2.34 or later, it needs 2.34.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

HERE = Path(__file__).resolve().parent
# under names that no other package uses
SOURCES = {
    "_hakmem_backend.c": "_hakmem_backend.c",
    "_bench_workloads.c": "_bench_workloads.c",
    "build.py": "_hakmem_build.py",
    "bench.py": "_hakmem_bench.py",
}


def compile_library(directory: Path) -> Path:
    """The release library in a directory, through build.py, which no package path leads to."""
    spec: Any = importlib.util.spec_from_file_location("_hakmem_build", HERE / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    try:
        library: Path = build.build(directory=directory)
    except (build.BuildError, OSError) as error:
        raise SystemExit(f"\nhakmem cannot be installed: {error}\n") from None
    return library


class BuildPy(build_py):
    """Adds the library and its sources to the module; an editable install gets the library in the tree."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            compile_library(HERE)
            return
        with tempfile.TemporaryDirectory() as scratch:
            self.copy_file(str(compile_library(Path(scratch))), str(Path(self.build_lib) / "_hakmem_backend.so"))
        for source, name in SOURCES.items():
            self.copy_file(str(HERE / source), str(Path(self.build_lib) / name))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *SOURCES]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        added = [str(Path(self.build_lib) / name) for name in ("_hakmem_backend.so", *SOURCES.values())]
        return [*super().get_outputs(include_bytecode), *added]


class Develop(develop):
    """The way to an editable install that tools from before PEP 660 take."""

    def run(self) -> None:
        compile_library(HERE)
        super().run()


class Platform(Distribution):
    """Tells setuptools that there is compiled code, so that all goes where a platform's files go."""

    def has_ext_modules(self) -> bool:
        return True


class BdistWheel(bdist_wheel):
    """The library does not use Python's C API, so one wheel serves every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=Platform, cmdclass={"build_py": BuildPy, "develop": Develop, "bdist_wheel": BdistWheel})
