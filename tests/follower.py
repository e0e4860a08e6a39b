"""Reads what a discovery says, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from hrl_planner.router.discovery import Discovery, Snapshot


class Follower:
    """Reads snapshots one at a time."""

    def __init__(self, discovery: Discovery) -> None:
        self._snapshots: AsyncIterator[Snapshot] = discovery.snapshots()

    async def next(self) -> Snapshot:
        return await asyncio.wait_for(anext(self._snapshots), 20)

    async def until(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        while not holds(snapshot := await self.next()):
            pass
        return snapshot

    async def close(self) -> None:
        await self._snapshots.aclose()  # type: ignore[attr-defined]
