"""What planners read of mirrors; without an API server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

pytest.importorskip("kubernetes")

from hrl_planner.control import Connector
from hrl_planner.control.connector import UnreadableError
from hrl_planner.control.mirrors import Mirrors
from hrl_planner.control.watched import Watched
from hrl_planner.kube.crds import GROUPS, POOLS


class Known:
    """A mirror of one object that says next to nothing of itself."""

    def __init__(self, keep: Callable[[Any], Any]) -> None:
        item = {"metadata": {"name": "it", "namespace": "n", "uid": "u"}, "spec": {}}
        self.objects = {"it": keep(item)}

    def believed(self) -> bool:
        return True


class OneOfEach:
    """The mirrors of a namespace."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, ...], Known] = {}

    def of(self, key: tuple[str, ...], call: Any, keep: Any, on_change: Any = None) -> Known:
        return self._made.setdefault(key, Known(keep))


class Nowhere:
    """A connector that nobody asks."""

    namespace = "n"


def frames(error: BaseException) -> int:
    count, trace = 0, error.__traceback__
    while trace is not None:
        count, trace = count + 1, trace.tb_next
    return count


@pytest.mark.parametrize("plural", [GROUPS, POOLS])
def test_what_is_unreadable_for_long_takes_no_more_memory_for_it(plural: str) -> None:
    watched = Watched(cast(Connector, Nowhere()), cast(Mirrors, OneOfEach()), whole=True)
    read = watched.group if plural == GROUPS else watched.pool
    seen = []
    for _ in range(50):
        try:
            read("it")
        except UnreadableError as error:
            seen.append(frames(error))
    assert len(seen) == 50
    assert seen[0] == seen[-1]
