"""A HiGHS solver object that keeps standard output clean.

HiGHS prints a banner to file descriptor 1 when the first solver of a process is made, before any
option can silence it; that would end up between lines other programs parse.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import highspy


@contextlib.contextmanager
def _stdout_to_nowhere() -> Iterator[None]:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # nobody listens
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def new_solver(**options: Any) -> highspy.Highs:
    """Return a silent, single-threaded solver with the given HiGHS options set."""
    with _stdout_to_nowhere():
        solver = highspy.Highs()
        solver.silent()
    solver.setOptionValue("threads", 1)
    for name, value in options.items():
        solver.setOptionValue(name, value)
    return solver
