"""Room for many connections: every request on its way holds a file descriptor."""

from __future__ import annotations

import resource


def raise_open_files() -> None:
    """Let this process open as many files as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
