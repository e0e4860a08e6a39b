"""Many episodes in one compiled call: an address book of their arrays.

Clusters differ in size, so they cannot be stacked, and lists of array tuples are slow to hand to
compiled code. Instead a *book* holds, for every array of an episode, its address and shape; the
compiled side makes the named tuples from it again. Whoever owns a book keeps the arrays alive
(`Book`). The same functions step one episode (`gymnasium.Env`) and many (`VecEnv`, over threads):
an episode's path through them does not depend on how many there are or on the thread it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from envs.control import CLOCK, Control, look, read, run
from envs.kernel.layout import (
    CACHE_NODE,
    CLASS,
    COUNTER,
    GLOBAL,
    POOL,
    REQUEST,
    TRANSFER,
    WORKER,
    Cluster,
)
from hrl_planner._compiled import compiled, compiled_parallel, entry_point
from hrl_planner.routing import WORKER_LOAD
from hrl_planner.surface import SURFACE

FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)
INT64, INT32 = np.dtype(np.int64), np.dtype(np.int32)

_WORDS = 4  # per array: its address and up to three dimensions
_CONTROL = len(Cluster._fields)  # place of the first array of the control
_ENTRIES = _CONTROL + len(Control._fields)


class Book:
    """The addresses of the arrays of a batch of episodes.

    Args:
        n: episodes in the batch.
    """

    def __init__(self, n: int) -> None:
        """See the class."""
        self.addresses = np.zeros((n, _ENTRIES, _WORDS), np.int64)
        self._alive: list[tuple[Cluster, Control] | None] = [None] * n

    def enter(self, index: int, cluster: Cluster, control: Control) -> None:
        """Write an episode's arrays at a place of the batch, instead of what was there."""
        for entry, array in enumerate((*cluster, *control)):
            if not array.flags.c_contiguous:
                raise ValueError("arrays of an episode are contiguous")
            self.addresses[index, entry, 0] = array.ctypes.data
            self.addresses[index, entry, 1 : 1 + array.ndim] = array.shape
        self._alive[index] = (cluster, control)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing_context: Any, address: Any) -> Any:
    """Make a pointer of a number."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _call(typing_context: Any, function: Any, book: Any, row: Any, length: Any) -> Any:
    """Call an entry point at its address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = context.get_value_type(types.int64)
        shape = ir.FunctionType(ir.VoidType(), [word, word, word])
        builder.call(builder.inttoptr(arguments[0], shape.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@compiled
def view1(book: NDArray[np.int64], k: int, dtype: Any) -> Any:
    """Return the k-th array of an episode, one dimension."""
    return numba.carray(_pointer(book[k, 0]), (book[k, 1],), dtype)


@compiled
def view2(book: NDArray[np.int64], k: int, dtype: Any) -> Any:
    """Return the k-th array of an episode, two dimensions."""
    return numba.carray(_pointer(book[k, 0]), (book[k, 1], book[k, 2]), dtype)


@compiled
def view3(book: NDArray[np.int64], k: int, dtype: Any) -> Any:
    """Return the k-th array of an episode, three dimensions."""
    return numba.carray(_pointer(book[k, 0]), (book[k, 1], book[k, 2], book[k, 3]), dtype)


@compiled
def cluster_of(book: NDArray[np.int64]) -> Cluster:
    """Return the cluster of an episode."""
    return Cluster(
        g=view1(book, 0, GLOBAL),
        pools=view1(book, 1, POOL),
        surfaces=view1(book, 2, SURFACE),
        table=view1(book, 3, FLOAT64),
        workers=view1(book, 4, WORKER),
        load=view1(book, 5, WORKER_LOAD),
        heaps=view2(book, 6, INT64),
        tree=view1(book, 7, FLOAT64),
        requests=view1(book, 8, REQUEST),
        transfers=view1(book, 9, TRANSFER),
        blocks=view1(book, 10, INT32),
        cache_nodes=view1(book, 11, CACHE_NODE),
        cache_hash=view1(book, 12, INT64),
        counters=view1(book, 13, COUNTER),
        histograms=view3(book, 14, FLOAT64),
        classes=view1(book, 15, CLASS),
        ring=view3(book, 16, FLOAT64),
        ring_classes=view3(book, 17, FLOAT64),
        ring_s=view1(book, 18, FLOAT64),
        startup_s=view2(book, 19, FLOAT64),
        lifetime_s=view2(book, 20, FLOAT64),
        flows=view2(book, 21, FLOAT64),
        served=view2(book, 22, FLOAT64),
        guard_s=view2(book, 23, FLOAT64),
        ratio=view1(book, 24, FLOAT64),
        candidate=view1(book, 25, INT64),
        overlap=view1(book, 26, INT64),
        scratch=view1(book, 27, INT64),
        gpus_free=view1(book, 28, INT64),
        sample_s=view1(book, 29, FLOAT64),
        samples=view3(book, 30, FLOAT32),
        grid_lengths=view2(book, 31, FLOAT64),
        grid_targets=view2(book, 32, FLOAT64),
        grid_pools=view3(book, 33, INT64),
    )


@compiled
def control_of(book: NDArray[np.int64]) -> Control:
    """Return the control of an episode."""
    return Control(
        clock=view1(book, _CONTROL + 0, CLOCK),
        quota=view1(book, _CONTROL + 1, FLOAT64),
        override=view1(book, _CONTROL + 2, INT64),
        changed_s=view1(book, _CONTROL + 3, FLOAT64),
        remembered_s=view1(book, _CONTROL + 4, FLOAT64),
        targets=view1(book, _CONTROL + 5, INT64),
        current=view1(book, _CONTROL + 6, INT64),
        wish=view1(book, _CONTROL + 7, INT64),
        projected=view1(book, _CONTROL + 8, INT64),
        ones=view1(book, _CONTROL + 9, FLOAT64),
        wanted=view1(book, _CONTROL + 10, FLOAT64),
        rows=view2(book, _CONTROL + 11, FLOAT64),
        class_rows=view2(book, _CONTROL + 12, FLOAT64),
        features=view2(book, _CONTROL + 13, FLOAT32),
        class_features=view2(book, _CONTROL + 14, FLOAT32),
        rule=view1(book, _CONTROL + 15, FLOAT64),
        prefills=view1(book, _CONTROL + 16, INT64),
        decodes=view1(book, _CONTROL + 17, INT64),
        saturated_s_per_token=view1(book, _CONTROL + 18, FLOAT64),
        ttft_target_ms=view1(book, _CONTROL + 19, FLOAT64),
        itl_target_ms=view1(book, _CONTROL + 20, FLOAT64),
        minimum=view1(book, _CONTROL + 21, INT64),
        maximum=view1(book, _CONTROL + 22, INT64),
        gpus=view1(book, _CONTROL + 23, INT64),
        type_index=view1(book, _CONTROL + 24, INT64),
        type_budget=view1(book, _CONTROL + 25, INT64),
        watts_per_replica=view1(book, _CONTROL + 26, FLOAT64),
        pool_static=view2(book, _CONTROL + 27, FLOAT64),
        class_static=view2(book, _CONTROL + 28, FLOAT64),
        max_num_seqs=view1(book, _CONTROL + 29, FLOAT64),
        per_attained=view1(book, _CONTROL + 30, FLOAT64),
        per_gpu_s=view1(book, _CONTROL + 31, FLOAT64),
        per_replica=view1(book, _CONTROL + 32, FLOAT64),
        counted=view1(book, _CONTROL + 33, FLOAT64),
        terms=view1(book, _CONTROL + 34, FLOAT64),
        net=view1(book, _CONTROL + 35, FLOAT32),
        limits=view2(book, _CONTROL + 36, FLOAT64),
    )


@entry_point
def run_one(book: int, until_s: int, length: int) -> None:
    """Let time pass in an episode until the moment that stands at an address."""
    episode = numba.carray(_pointer(book), (_ENTRIES, _WORDS), INT64)
    moments_s = numba.carray(_pointer(until_s), (length,), FLOAT64)
    run(cluster_of(episode), control_of(episode), moments_s[0])


@entry_point
def read_one(book: int, out: int, length: int) -> None:
    """Observe an episode; write as many numbers from an address on."""
    episode = numba.carray(_pointer(book), (_ENTRIES, _WORDS), INT64)
    seen = numba.carray(_pointer(out), (length,), FLOAT32)
    read(cluster_of(episode), control_of(episode), seen)


@compiled
def look_each(books: NDArray[np.int64]) -> None:
    """Write the rows every planner sees, one episode after the other."""
    for b in range(books.shape[0]):
        look(cluster_of(books[b]), control_of(books[b]))


@compiled
def _each(
    function: int, n: int, book: int, book_bytes: int, row: int, row_bytes: int, length: int
) -> None:
    for b in range(n):
        _call(function, book + b * book_bytes, row + b * row_bytes, length)


@compiled_parallel
def _over_threads(
    function: int, n: int, book: int, book_bytes: int, row: int, row_bytes: int, length: int
) -> None:
    for b in numba.prange(n):
        _call(function, book + b * book_bytes, row + b * row_bytes, length)


def for_every_episode(
    function: Callable[[], int], books: NDArray[np.int64], rows: NDArray[Any], parallel: bool
) -> None:
    """Call an entry point for every episode with its row of an array.

    Args:
        function: `run_one` with moments (n, 1), or `read_one` with observations (n, size).
        books: entries of the episodes, (n, ...).
        rows: what each call reads or writes.
        parallel: over threads; else one after the other.
    """
    loop = _over_threads if parallel else _each
    loop(
        function(), len(books), books.ctypes.data, books.strides[0],
        rows.ctypes.data, rows.strides[0], rows.shape[1],
    )  # fmt: skip


def addresses_of(book: Book, rows: Sequence[int]) -> NDArray[np.int64]:
    """Return the entries of some episodes of a batch."""
    return np.ascontiguousarray(book.addresses[list(rows)])
