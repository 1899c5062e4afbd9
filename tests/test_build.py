"""build.py compiles each variant without a word from the compiler, and only when something changed."""

from __future__ import annotations

import shutil
import sys

import pytest

import build

NO_OVERRIDE = [name for name in build.VARIANTS if "-DHAK_NO_OVERRIDE=1" in build.flags(name)]


@pytest.fixture
def tree(tmp_path, root):
    """A copy of what build.py needs, to compile in without touching the checkout."""
    for name in ("build.py", "_hakmem_backend.c"):
        shutil.copy(root / name, tmp_path)
    return tmp_path


def script(tree, run, *arguments, **keywords):
    return run(sys.executable, tree / "build.py", *arguments, **keywords)


def test_list_names_every_variant(run, root):
    listed = script(root, run, "--list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(build.VARIANTS)
    assert {"release", "debug", "asan", "ubsan", "tsan", "nolock"} == set(build.VARIANTS)


def test_print_path_builds_nothing(tree, run):
    paths = script(tree, run, "--print-path", "release", "debug").stdout.split()
    assert paths == [str(tree / "_hakmem_backend.so"), str(tree / "_hakmem_backend-debug.so")]
    assert not list(tree.glob("*.so"))


def test_prints_the_compiler_line_once_and_then_does_nothing(tree, run):
    first = script(tree, run)
    assert "-DHAK_VARIANT" in first.stdout
    assert str(tree / "_hakmem_backend.so") in first.stdout
    before = (tree / "_hakmem_backend.so").stat()
    assert script(tree, run).stdout == ""
    assert (tree / "_hakmem_backend.so").stat() == before


def test_compiles_again_when_the_source_or_the_flags_change_or_when_forced(tree, run):
    script(tree, run)
    with open(tree / "_hakmem_backend.c", "a", encoding="utf-8") as source:
        source.write("\n/* changed */\n")
    assert script(tree, run).stdout
    text = (tree / "build.py").read_text(encoding="utf-8")
    (tree / "build.py").write_text(text.replace('"-O2",', '"-O2 -g0",'), encoding="utf-8")
    assert script(tree, run).stdout
    assert not script(tree, run).stdout
    assert script(tree, run, "--force").stdout


@pytest.mark.parametrize("variant", build.VARIANTS)
def test_the_compiler_has_nothing_to_say_and_only_overriding_variants_export_malloc(tree, run, variant):
    done = script(tree, run, variant)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert build.library_path(variant, tree).exists()
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is missing")
    exported = run("nm", "-D", "--defined-only", build.library_path(variant, tree)).stdout.splitlines()
    names = {line.split()[-1] for line in exported}
    assert "hak_malloc" in names
    assert ("malloc" in names) == (variant not in NO_OVERRIDE)
    if variant in NO_OVERRIDE:
        assert all(name.startswith("hak_") for name in names)


def test_without_a_compiler_it_says_how_to_get_one(tree, run):
    done = script(tree, run, check=False, PATH="/nonexistent", CC=None)
    assert done.returncode == 1
    assert "apt-get install gcc" in done.stderr
    assert "dnf" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_compiler_a_current_library_is_left_alone(tree, run):
    script(tree, run)
    assert script(tree, run, PATH="/nonexistent", CC=None).stdout == ""


def test_cc_decides_and_may_carry_arguments(tree, run):
    assert script(tree, run, CC="gcc -pipe").stdout.startswith("gcc -pipe ")
    done = script(tree, run, "--force", check=False, CC="no-such-compiler")
    assert done.returncode == 1
    assert "CC=no-such-compiler" in done.stderr


def test_an_error_of_the_compiler_is_shown_and_leaves_the_library_as_it_was(tree, run):
    script(tree, run)
    before = (tree / "_hakmem_backend.so").read_bytes()
    (tree / "_hakmem_backend.c").write_text("int broken(void) { return }\n", encoding="utf-8")
    done = script(tree, run, check=False)
    assert done.returncode == 1
    assert "broken" in done.stderr
    assert (tree / "_hakmem_backend.so").read_bytes() == before
    assert not list(tree.glob(".*.new"))


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(build.BuildError, match="release, debug"):
        build.build("fastest")


def test_workloads_know_nothing_of_hakmem(run):
    program = build.workloads(quiet=True)
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is missing")
    assert not [line for line in run("nm", program).stdout.splitlines() if " T hak_" in line]
    assert not any("hak" in flag for flag in build.WORKLOAD_FLAGS)
