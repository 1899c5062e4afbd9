"""A fault that was found once is not found again: a case for each."""

from __future__ import annotations

import pytest
from _helpers import case_names, program, succeed

# cases that need a library beside them
BESIDE = {
    "fork_with_handlers": "handlers.c",
    "freed_beside_a_purge": "held_madvise.c",
    "realloc_without_mremap": "no_mremap.c",
}


@pytest.mark.parametrize("case", case_names("regressions.c"))
def test_regression(case: str) -> None:
    beside = program(BESIDE[case], "-shared", "-fPIC") if case in BESIDE else None
    succeed([program("regressions.c"), case], last=beside)
