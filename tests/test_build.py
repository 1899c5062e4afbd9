"""build.py compiles each variant without a word from the compiler, only when something changed, and in a safe place."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import sys
from pathlib import Path

import pytest

import build

NO_OVERRIDE = [name for name in build.VARIANTS if "-DHAK_NO_OVERRIDE=1" in build.flags(name)]


@pytest.fixture
def tree(tmp_path, root):
    """A copy of what build.py needs, to compile in without touching the checkout."""
    for name in ("build.py", "_hakmem_backend.c"):
        shutil.copy(root / name, tmp_path)
    return tmp_path


@pytest.fixture
def small_tree(tree):
    """The same with a source that is compiled at once, for what has nothing to do with what stands in it."""
    (tree / "_hakmem_backend.c").write_text("const char *hak_malloc(void) { return HAK_VARIANT; }\n", encoding="utf-8")
    return tree


def script(tree, run, *arguments, **keywords):
    return run(sys.executable, tree / "build.py", *arguments, **keywords)


def test_list_names_every_variant(run, root):
    listed = script(root, run, "--list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(build.VARIANTS)
    assert {"release", "debug", "hardened", "asan", "ubsan", "tsan", "nolock"} == set(build.VARIANTS)


def test_print_path_builds_nothing(tree, run):
    paths = script(tree, run, "--print-path", "release", "debug").stdout.split()
    assert paths == [str(tree / "_hakmem_backend.so"), str(tree / "_hakmem_backend-debug.so")]
    assert not list(tree.glob("*.so"))


def test_prints_the_compiler_line_once_and_then_does_nothing(small_tree, run):
    first = script(small_tree, run)
    assert "-DHAK_VARIANT" in first.stdout
    assert str(small_tree / "_hakmem_backend.so") in first.stdout
    before = (small_tree / "_hakmem_backend.so").stat()
    assert script(small_tree, run).stdout == ""
    assert (small_tree / "_hakmem_backend.so").stat() == before


def test_compiles_again_when_the_source_or_the_flags_change_or_when_forced(small_tree, run):
    script(small_tree, run)
    with open(small_tree / "_hakmem_backend.c", "a", encoding="utf-8") as source:
        source.write("\n/* changed */\n")
    assert script(small_tree, run).stdout
    text = (small_tree / "build.py").read_text(encoding="utf-8")
    (small_tree / "build.py").write_text(text.replace('"-O2",', '"-O2 -g0",'), encoding="utf-8")
    assert script(small_tree, run).stdout
    assert not script(small_tree, run).stdout
    assert script(small_tree, run, "--force").stdout


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


def test_without_a_compiler_a_current_library_is_left_alone(small_tree, run):
    script(small_tree, run)
    assert script(small_tree, run, PATH="/nonexistent", CC=None).stdout == ""


def test_cc_decides_and_may_carry_arguments(small_tree, run):
    assert script(small_tree, run, CC="gcc -pipe").stdout.startswith("gcc -pipe ")
    done = script(small_tree, run, "--force", check=False, CC="no-such-compiler")
    assert done.returncode == 1
    assert "CC=no-such-compiler" in done.stderr


def test_an_error_of_the_compiler_is_shown_and_leaves_the_library_as_it_was(small_tree, run):
    script(small_tree, run)
    before = (small_tree / "_hakmem_backend.so").read_bytes()
    (small_tree / "_hakmem_backend.c").write_text("int broken(void) { return }\n", encoding="utf-8")
    done = script(small_tree, run, check=False)
    assert done.returncode == 1
    assert "broken" in done.stderr
    assert (small_tree / "_hakmem_backend.so").read_bytes() == before
    assert not list(small_tree.glob(".*.new"))


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(build.BuildError, match="release, debug"):
        build.build("fastest")


def test_workloads_know_nothing_of_hakmem(run):
    program = build.workloads(quiet=True)
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is missing")
    assert not [line for line in run("nm", program).stdout.splitlines() if " T hak_" in line]
    assert not any("hak" in flag for flag in build.WORKLOAD_FLAGS)


# ---- the user's cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return directory


def test_the_cache_is_private_and_lies_where_xdg_says_or_in_the_home(home, tmp_path, monkeypatch):
    assert build.cache_directory() == home / ".cache" / "hakmem"
    assert stat.S_IMODE(build.cache_directory().stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert build.cache_directory() == home / ".cache" / "hakmem"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "chosen"))
    assert build.cache_directory() == tmp_path / "chosen" / "hakmem"


def no_entry(uid):
    raise KeyError(uid)


def test_without_a_home_there_is_no_cache_and_no_guessable_name_instead(monkeypatch, tmp_path):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(build.BuildError, match=r"no home directory.*XDG_CACHE_HOME.*HAKMEM_LIBRARY"):
        build.build_in_cache()
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(build.BuildError, match="no home directory"):
        build.build_in_cache()
    assert not list(tmp_path.iterdir())


def test_a_cache_of_somebody_else_or_open_to_others_is_refused(home, monkeypatch):
    directory = build.cache_directory()
    for mode in (0o720, 0o702):
        directory.chmod(mode)
        with pytest.raises(build.BuildError, match=r"no one else can write to.*XDG_CACHE_HOME"):
            build.build_in_cache()
    directory.chmod(0o700)
    monkeypatch.setattr(build.os, "geteuid", lambda: directory.stat().st_uid + 1)
    with pytest.raises(build.BuildError, match="a directory of yours"):
        build.build_in_cache()


def test_a_link_in_the_place_of_the_cache_is_refused(home, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (home / ".cache").mkdir()
    (home / ".cache" / "hakmem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(build.BuildError, match="a directory of yours"):
        build.build_in_cache()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("level", [".", ".."])
@pytest.mark.parametrize(
    ("mode", "good"), [(0o777, False), (0o702, False), (0o770, False), (0o1777, True), (0o755, True)]
)
def test_a_directory_above_the_cache_that_others_can_write_to_is_refused(tmp_path, monkeypatch, level, mode, good):
    root = tmp_path / "above" / "root"
    root.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root))
    monkeypatch.setattr(build, "_only_ours", lambda group: False)
    (root / level).resolve().chmod(mode)
    if good:
        assert build.cache_directory() == root / "hakmem"
        return
    with pytest.raises(build.BuildError, match=r"others own .*can write to it.*XDG_CACHE_HOME"):
        build.build_in_cache()
    (tmp_path / "link").symlink_to(root)  # a link to it makes it no better
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    with pytest.raises(build.BuildError, match=f"can write to it, and so replace {root}"):
        build.build_in_cache()


def test_a_group_with_nobody_else_in_it_may_write_above_the_cache(home, monkeypatch):
    (home / ".cache").mkdir()
    (home / ".cache").chmod(0o775)
    user = "adam"
    monkeypatch.setattr(build.pwd, "getpwuid", lambda uid: pwd.struct_passwd((user, "x", uid, 1, "", "/", "/bin/sh")))

    def group(name, *others):
        entry = grp.struct_group((name, "x", 1, list(others)))
        monkeypatch.setattr(build.grp, "getgrgid", lambda gid: entry)

    for others in ([], [user]):
        group(user, *others)
        assert build.cache_directory() == home / ".cache" / "hakmem"
    for name, others in ((user, ["eve"]), ("users", [])):
        group(name, *others)
        with pytest.raises(build.BuildError, match="can write to it"):
            build.cache_directory()


def test_a_directory_above_the_cache_that_is_somebody_elses_is_refused(home):
    if os.geteuid():
        pytest.skip("only root can give a directory to somebody else")
    (home / ".cache").mkdir()
    os.chown(home / ".cache", 65534, -1)
    with pytest.raises(build.BuildError, match="others own"):
        build.build_in_cache()


def test_a_link_under_the_name_that_a_file_is_written_under_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("as it was", encoding="utf-8")
    target = tmp_path / "target"
    with build._replacing(target) as fresh:
        assert stat.S_IMODE(fresh.parent.stat().st_mode) == 0o700  # nobody else can put anything there
        assert fresh.parent.parent == tmp_path
        with build._replacing(target) as other:
            assert fresh.parent != other.parent  # nor is it the process's number
            other.write_text("other", encoding="utf-8")
        fresh.write_text("made", encoding="utf-8")
        target.unlink()
        target.symlink_to(victim)
    assert target.read_text(encoding="utf-8") == "made"
    assert victim.read_text(encoding="utf-8") == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "victim"]


def test_a_cache_that_programs_cannot_be_mapped_from_is_refused(home, monkeypatch):
    status = os.statvfs(home)
    fake = os.statvfs_result([*status[:8], status.f_flag | os.ST_NOEXEC, *status[9:]])
    monkeypatch.setattr(build.os, "statvfs", lambda path: fake)
    with pytest.raises(build.BuildError, match=r"noexec.*XDG_CACHE_HOME"):
        build.build_in_cache()


def test_a_home_that_cannot_be_written_to_is_named_with_the_ways_out(home):
    home.rmdir()
    home.write_text("", encoding="utf-8")
    with pytest.raises(build.BuildError, match=f"{home}.*XDG_CACHE_HOME.*HAKMEM_LIBRARY"):
        build.build_in_cache()


def test_what_is_in_the_cache_is_not_compiled_again_by_any_compiler(home, monkeypatch):
    first = build.compile_in_cache(build.WORKLOADS, "", build.WORKLOAD_FLAGS)
    assert first.parent == build.cache_directory()
    assert os.access(first, os.X_OK)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build.compile_in_cache(build.WORKLOADS, "", build.WORKLOAD_FLAGS) == first
    with pytest.raises(build.BuildError, match="no-such-compiler"):
        build.compile_in_cache(build.WORKLOADS, "", [*build.WORKLOAD_FLAGS, "-g"])


def test_what_a_failing_compiler_leaves_is_not_taken_for_a_library(home, tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nfor last; do case "$last" in *.new/*) echo half >"$last";; esac; done\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(build.BuildError, match="status 1"):
        build.build_in_cache()
    assert [path.suffix for path in build.cache_directory().iterdir()] == [".lock"]


@pytest.mark.usefixtures("quick_compiler")
def test_only_a_writable_checkout_gets_libraries_beside_its_sources(home, tree, run, root):
    show = "import build; print(build.library('debug')); print(build.library_path('debug'))"
    beside, expected = run(sys.executable, "-c", show, cwd=tree, PYTHONPATH=None).stdout.split()[-2:]
    assert beside == expected
    installed = tree / "installed"
    installed.mkdir()
    shutil.copy(root / "build.py", installed / "_hakmem_build.py")
    for name in ("_hakmem_backend.c", "_bench_workloads.c"):
        shutil.copy(root / name, installed)
    show = "import _hakmem_build as build; print(build.library('debug'), build.workloads())"
    made = run(sys.executable, "-c", show, cwd=installed, PYTHONPATH=None).stdout.split()
    assert {Path(path).parent for path in made} == {build.cache_directory()}
    assert {path.suffix for path in installed.iterdir()} <= {".py", ".c", ""}
    cached = {path.name for path in build.cache_directory().iterdir() if not path.name.startswith(".")}
    assert cached == {Path(path).name for path in made}


def test_a_checkout_that_cannot_be_written_to_uses_the_cache(home, monkeypatch):
    real = os.access
    monkeypatch.setattr(build.os, "access", lambda path, mode: path != build.HERE and real(path, mode))
    assert build.workloads().parent == build.cache_directory()
