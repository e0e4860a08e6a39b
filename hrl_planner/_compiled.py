"""One decorator for the functions that simulation and production share.

With numba installed (training, evaluation) they compile once and are cached on disk; without it
(the planner and router images) they run as the plain Python they are. Numba's cache does not
notice edits in another module, so the cache directory is keyed by a hash of every source file
that holds compiled code: a changed callee can never meet a stale caller.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

_PACKAGES = ("hrl_planner", "envs", "agents")


def _package_dirs() -> list[Path]:
    dirs: list[Path] = []
    for name in _PACKAGES:
        found = importlib.util.find_spec(name)
        if found is not None and found.submodule_search_locations:
            dirs.extend(Path(place) for place in found.submodule_search_locations)
    return dirs


@functools.cache
def cache_dir() -> Path:
    """Return the directory of compiled code that belongs to the sources as they are now."""
    digest = hashlib.sha256()
    for package in _package_dirs():
        for source in sorted(package.rglob("*.py")):
            text = source.read_bytes()
            if b"_compiled import" in text:
                digest.update(text)
    root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    base = Path(root) if root else Path.home() / ".cache"
    place = base / "hrl-planner" / f"numba-{digest.hexdigest()[:16]}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        place = Path(tempfile.gettempdir()) / f"hrl-planner-numba-{os.getuid()}" / place.name
        place.mkdir(parents=True, exist_ok=True)
    return place


def _decorate(function: F, **options: bool) -> F:
    try:
        import numba
    except ImportError:
        return function
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_dir())
    try:
        dispatcher: F = numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    finally:
        numba.config.CACHE_DIR = before
    return dispatcher


def compiled(function: F) -> F:
    """Compile a function with numba where it is installed, else return it as it is."""
    return _decorate(function)


def inlined(function: F) -> F:
    """Like `compiled`, and always inlined into compiled callers: for the parts of a hot loop.

    A call that passes the simulator's arrays costs more than most of these functions do.
    """
    return _decorate(function, forceinline=True, _nrt=False)


def lean(function: F) -> F:
    """Like `compiled`, for functions that allocate no arrays.

    Numba counts references of every array it touches, with atomic operations. In a loop over many
    arrays that costs more than the work itself; a function that allocates nothing needs no counts.
    """
    return _decorate(function, _nrt=False)


def compiled_parallel(function: F) -> F:
    """Like `compiled`, with `numba.prange` loops spread over threads."""
    return _decorate(function, parallel=True)
