"""Results that follow from a cluster spec alone, worked out once per spec object.

Specs are frozen, and training starts thousands of episodes on the same few: how much traffic one
sustains, or what its rule compares with, need not be found again for each. Kept by identity, since
comparing specs would cost more than most results, and only for as long as the spec lives. What
is returned is shared: do not write into it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")

_KEPT: dict[int, dict[Any, Any]] = {}


def once_per_spec(make: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Remember what a function of a spec, and of hashable arguments, returned."""

    @functools.wraps(make)
    def remembered(spec: S, *args: P.args, **kwargs: P.kwargs) -> T:
        kept = _KEPT.get(id(spec))
        if kept is None:
            kept = _KEPT[id(spec)] = {}
            weakref.finalize(spec, _KEPT.pop, id(spec), None)
        key = (make, args, tuple(kwargs.items()))
        if key not in kept:
            kept[key] = make(spec, *args, **kwargs)
        result: T = kept[key]
        return result

    return cast(Callable[Concatenate[S, P], T], remembered)
