"""Watches for programs of threads: one event loop in a thread of its own keeps all of them.

A mirror is made when somebody first asks for it, and read without waiting from then on. Whoever
reads asks first whether it can be believed: not before the first list, and not once its watch has
been broken for `BELIEVED_S`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from kubernetes.aio.client import ApiClient, Configuration

from hrl_planner.kube.reflector import Json, ListCall, Reflector

Kept = TypeVar("Kept")
OnChange = Callable[[Mapping[str, Kept], Collection[str]], None]

BELIEVED_S = 10.0
# Whoever asks first waits so long for the first list.
_FIRST_S = 5.0
_CLOSE_S = 10.0
_GOOD_BYE_S = 0.25
_log = logging.getLogger(__name__)


class Mirror(Generic[Kept]):
    """One kind of object, as last heard.

    Args:
        reflector: what hears.
        on_change: called in the watching thread with all objects and the names that changed.
    """

    def __init__(self, reflector: Reflector[Kept], on_change: OnChange[Kept] | None) -> None:
        """See the class."""
        self._reflector = reflector
        self._on_change = on_change
        self._listed = threading.Event()

    @property
    def objects(self) -> dict[str, Kept]:
        """What is known, by name."""
        return self._reflector.objects

    def believed(self) -> bool:
        """Say whether what is known is about what there is; the first to ask waits for a list."""
        if not self._listed.is_set():
            self._listed.wait(_FIRST_S)
            self._listed.set()  # nobody waits twice; before a list nothing is believed
        return self._reflector.behind_s() <= BELIEVED_S

    async def follow(self) -> None:
        """Hear, until cancelled."""
        async for names in self._reflector.changes():
            if self._on_change is not None:
                self._on_change(self._reflector.objects, names)
            self._listed.set()


class Mirrors:
    """The mirrors of a process; a context manager that ends them.

    Args:
        configuration: finds the way to the API server.
    """

    def __init__(self, configuration: Callable[[], Awaitable[Configuration]]) -> None:
        """See the class."""
        self._configuration = configuration
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="watches", daemon=True)
        self._api: ApiClient | None = None
        self._lock = threading.Lock()
        self._mirrors: dict[tuple[str, ...], tuple[Mirror[Any], asyncio.Future[None]]] = {}

    def __enter__(self) -> Mirrors:
        """Begin.

        Raises:
            KubeError: where there is no way to an API server.
        """
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all watches."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_CLOSE_S)
        self._end_thread()

    def of(
        self,
        key: tuple[str, ...],
        call: Callable[[ApiClient], ListCall],
        keep: Callable[[Json], Kept | None],
        on_change: OnChange[Kept] | None = None,
    ) -> Mirror[Kept]:
        """Return the mirror of a key, made by the first who asks for it.

        Args:
            key: one for each different call; its words name the mirror in logs.
            call: makes the list call.
            keep: what is kept of an object, and None for nothing.
            on_change: see `Mirror`.
        """
        with self._lock:
            if key not in self._mirrors:
                assert self._api is not None, "entered"
                reflector = Reflector(" ".join(key).rstrip(), call(self._api), keep)
                mirror = Mirror(reflector, on_change)
                following = asyncio.run_coroutine_threadsafe(mirror.follow(), self._loop)
                following.add_done_callback(_tell_end)
                self._mirrors[key] = (mirror, following)  # type: ignore[assignment]
            return self._mirrors[key][0]

    def __len__(self) -> int:
        """Return how many watches there are."""
        return len(self._mirrors)

    async def _open(self) -> None:
        self._api = ApiClient(await self._configuration())

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._api is not None:
            await self._api.close()  # type: ignore[no-untyped-call]
        # aiohttp does not wait until TLS connections have said good-bye.
        await asyncio.sleep(_GOOD_BYE_S)
        await self._loop.shutdown_asyncgens()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _tell_end(following: Any) -> None:
    """A mirror that ended by a fault of its own is silent from then on, and not believed."""
    if not following.cancelled() and following.exception() is not None:
        _log.error("a watch has ended", exc_info=following.exception())
