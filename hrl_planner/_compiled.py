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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

try:
    import numba
except ImportError:
    numba = None

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


@contextmanager
def _cached_in_our_place() -> Iterator[None]:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_dir())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _decorate(function: F, **options: Any) -> F:
    if numba is None:
        return function
    with _cached_in_our_place():
        dispatcher: F = numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
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


def merged(function: F) -> F:
    """Like `compiled`, as a part of its callers: for one large function with one caller.

    Compiled code contains all that it calls, so a large callee is compiled again with every caller.
    """
    return _decorate(function, inline="always")


def entry_point(function: Callable[[int, int, int], None]) -> Callable[[], int]:
    """Compile a function of three words when its address is first asked for.

    Who calls it at that address is compiled without it: many callers of most of the simulator
    would otherwise each take as long to compile.
    """

    @functools.cache
    def callback() -> Any:
        with _cached_in_our_place():
            made = numba.cfunc("void(int64, int64, int64)", cache=True, error_model="numpy")
            return made(function)

    return lambda: int(callback().address)
