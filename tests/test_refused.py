"""Under limits that the system really sets, malloc says ENOMEM, free works, and all is well once the limit is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from _helpers import program, run, succeed, text

STRICT = Path("/proc/sys/vm/overcommit_memory")


def refused(case: str, **options: object) -> str:
    """Run a case of tests/c/refused.c under hakmem; skip where it says that it cannot be made here."""
    output = succeed([program("refused.c"), case], **options)
    if output.startswith("skipped: "):
        pytest.skip(output.strip())
    return output


@pytest.mark.parametrize("case", ["data_limit", "all_memory_locked", "future_memory_locked", "mapping_ceiling"])
def test_a_limit_of_the_process(case: str) -> None:
    refused(case, env={"HAKMEM_RESERVE": "64M"} if case == "all_memory_locked" else {})


@pytest.mark.parametrize("limit_mib", [*range(8, 40, 4), 64, 100, 200])
def test_hardly_any_address_space(limit_mib: int) -> None:
    done = run([program("refused.c"), "little"], limit_kib=limit_mib * 1024)
    assert done.returncode in (0, 127), text(done.stderr)  # 127: the dynamic linker finds no room
    if done.returncode == 0 and b"cannot be preloaded" not in done.stderr:
        assert text(done.stdout) == "hakmem\n"
        assert not done.stderr, text(done.stderr)
    assert limit_mib < 64 or text(done.stdout) == "hakmem\n"


@pytest.mark.parametrize("limit_mib", [100, 1024])
def test_a_reserve_that_the_system_refuses_is_made_smaller(limit_mib: int) -> None:
    output = refused("little", env={"HAKMEM_RESERVE": "1T"}, limit_kib=limit_mib * 1024)
    assert output == "hakmem\n"


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group for memory, of version 1 or 2."""
    root = Path("/sys/fs/cgroup")
    old = (root / "memory/memory.limit_in_bytes").exists()
    path = (root / "memory" if old else root) / f"hakmem-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        if not (path / ("memory.limit_in_bytes" if old else "memory.max")).exists():
            pytest.skip(f"{path} has no control of memory")
        yield path
    finally:
        path.rmdir()


@pytest.mark.parametrize(
    ("case", "limit_mib", "env"),
    [
        ("resident_limit", 200, {}),
        ("resident_limit", 130, {"HAKMEM_PURGE_MS": "0", "HAKMEM_RETAIN": "0"}),
        ("resident_limit_with_trim", 100, {}),
    ],
)
def test_a_program_lives_within_its_control_group(case: str, limit_mib: int, env: dict[str, str], group: Path) -> None:
    version_1 = {"memory.limit_in_bytes": limit_mib << 20, "memory.memsw.limit_in_bytes": limit_mib << 20}
    for name, value in {**version_1, "memory.max": limit_mib << 20, "memory.swap.max": 0}.items():
        if (group / name).exists():
            (group / name).write_text(str(value))
    enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', group / "cgroup.procs"]
    output = succeed([*enter, program("refused.c"), case], env=env)
    assert output.splitlines()[-1].startswith("lived in ")


def test_strict_overcommit() -> None:
    if STRICT.read_text().strip() != "2" and not os.environ.get("HAKMEM_TEST_OVERCOMMIT"):
        pytest.skip("vm.overcommit_memory is not 2; with HAKMEM_TEST_OVERCOMMIT=1 it is made so for this test")
    program("refused.c")
    before = STRICT.read_text()
    try:
        if before.strip() != "2":
            STRICT.write_text("2")
        output = refused("strict_overcommit")
    finally:
        if STRICT.read_text() != before:
            STRICT.write_text(before)
    assert output.endswith(" MiB refused\n")
