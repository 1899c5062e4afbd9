"""What the tests share: a library that is as new as its source, and processes to try things in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import build  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell started us with &; what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "HAKMEM_LIBRARY" not in os.environ:
    build.build(quiet=True)


@pytest.fixture(scope="session")
def root():
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def library():
    """The library under test."""
    return Path(os.environ.get("HAKMEM_LIBRARY", build.library_path()))


@pytest.fixture
def run():
    """Runs a command to its end; keywords are environment variables, None removes one."""

    def run(*command, check=True, cwd=ROOT, **environment):
        merged = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={name: str(value) for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture
def python(run):
    """Runs Python source in a process of its own."""

    def python(source, *arguments, **keywords):
        return run(sys.executable, "-c", source, *arguments, **keywords)

    return python


@pytest.fixture
def quick_compiler(tmp_path_factory, monkeypatch):
    """A cc that does not optimise, for tests of where and when libraries are built: it takes a third of the time."""
    if "CC" in os.environ:
        return
    folder = tmp_path_factory.mktemp("quick")
    script = folder / "cc"
    script.write_text(
        "#!/bin/sh\n"
        'for word; do shift; case $word in -O?) word=-O0 ;; esac; set -- "$@" "$word"; done\n'
        f'exec {shutil.which(build.find_compiler()[0])} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
