"""Leader election of a process' planners, in a thread of its own so that no round delays it.

`EachItsOwn` renews a lease per planner: two requests every two seconds, for processes of one or
two planners. `OneHeartbeat` is for hundreds: it renews one lease, and holds the others by naming
that one in them, which takes a write per planner once. Either way there is one lease per planner,
whoever runs it, so no two processes lead the same planner, however many each of them runs.

A process that could not renew for two thirds of the duration leads nothing: by then nobody else
counts the lease as run out. When it can again, and its heartbeat is still there, nobody has taken
over: that begins with ending the heartbeat. Only who lacks the permission takes a lease without
that, after three times the duration, and by then its holder has forgotten what it held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

from urllib3.exceptions import HTTPError

from hrl_planner.control.lease import DURATION_S, UNENDED_DURATIONS, Lease, Leases
from hrl_planner.errors import HrlPlannerError

# Whoever leads renews so often, and whoever does not looks so often whether it may.
RENEW_S = DURATION_S / 5.0
_BELIEVED_S = DURATION_S * 2.0 / 3.0
_FORGOTTEN_S = DURATION_S * (UNENDED_DURATIONS - 1.0)
# After a failure: whoever was cut off acts again soon after the server is back.
_RETRY_S = 1.0
# Renewing must not wait for five hundred leases to be taken.
_TAKE_S = 2.0
_log = logging.getLogger(__name__)


class Keeper(Protocol):
    """A way to hold many leases.

    Attributes:
        unfinished: there was no time yet to look at all of them.
    """

    unfinished: bool

    def keep(self, names: Collection[str]) -> set[str]:
        """Renew what is held, take what is free, let go of the rest; return what is ours.

        Raises:
            KubeError: if leases may not be read or written.
        """

    def release(self) -> None:
        """Let go of everything; errors as above."""


class EachItsOwn:
    """See the module.

    Args:
        leases: of the namespace.
    """

    def __init__(self, leases: Leases) -> None:
        """See the class."""
        self.unfinished = False
        self._leases = leases
        self._kept: set[str] = set()

    def keep(self, names: Collection[str]) -> set[str]:
        """Renew each."""
        for name in self._kept - set(names):
            Lease(self._leases, name).release()
        self._kept = {name for name in names if Lease(self._leases, name).hold()}
        return self._kept

    def release(self) -> None:
        """Let go of each."""
        self.keep(())


class OneHeartbeat:
    """See the module.

    Args:
        leases: of the namespace.
        clock: seconds, monotonic.
    """

    def __init__(self, leases: Leases, clock: Callable[[], float] = time.monotonic) -> None:
        """See the class."""
        self.unfinished = False
        self._leases, self._clock = leases, clock
        self._kept: set[str] = set()
        self._beat_s = clock()

    def keep(self, names: Collection[str]) -> set[str]:
        """Renew the heartbeat, and write it into leases that are free."""
        began_s = self._clock()
        heartbeat = self._leases.heartbeat
        beat = self._leases.read(heartbeat)
        forgotten = began_s - self._beat_s >= _FORGOTTEN_S
        if beat is None or not self._leases.is_ours(beat) or forgotten:
            self._kept = set()
        if not self._leases.write(heartbeat, beat, self._leases.holder):
            self._kept = set()  # another has ended it this very moment
            return self._kept
        self._beat_s = began_s
        wanted = set(names)
        if self._kept != wanted:
            self._kept = self._changed(wanted, began_s + _TAKE_S)
        return self._kept

    def _changed(self, wanted: set[str], until_s: float) -> set[str]:
        found = self._leases.read_all()
        self.unfinished = False
        # Ours by what is written in them: what was kept is forgotten after a stall.
        for name in found.keys() - wanted - {self._leases.heartbeat}:
            if self._leases.is_ours(found[name]):
                self._leases.remove(found[name])
        kept = self._kept & wanted
        for name in sorted(wanted - kept):
            if self._clock() > until_s:
                self.unfinished = True
                break
            lease = found.get(name)
            if lease is not None and not self._leases.is_free(lease, found.get):
                continue
            if self._leases.write(name, lease, self._leases.by_heartbeat):
                kept.add(name)
        return kept

    def release(self) -> None:
        """Let go of all at once, by ending the heartbeat they are held by."""
        self._kept = set()
        beat = self._leases.read(self._leases.heartbeat)
        if beat is None or not self._leases.is_ours(beat):
            return
        if not self._leases.remove(beat):
            self._leases.write(self._leases.heartbeat, beat, "")


class Elector:
    """Keeps leases in a thread of its own; a context manager that lets go of them.

    Args:
        keeper: how leases are held.
        clock: seconds, monotonic.
    """

    def __init__(self, keeper: Keeper, clock: Callable[[], float] = time.monotonic) -> None:
        """See the class."""
        self._keeper, self._clock = keeper, clock
        self._wanted: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        self._kept_s = clock()
        self._stop = threading.Event()
        self._due = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)
        self.answered = False

    def __enter__(self) -> Elector:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of everything."""
        self._stop.set()
        with self._due:
            self._due.notify()
        self._thread.join()

    def want(self, names: Collection[str]) -> None:
        """Say which leases are wanted now; others are let go of."""
        wanted = frozenset(names)
        with self._due:
            if wanted != self._wanted:
                self._wanted = wanted
                self._due.notify()

    def leads(self, name: str) -> bool:
        """Say whether a lease is ours."""
        return name in self._kept and self._clock() - self._kept_s < _BELIEVED_S

    def _run(self) -> None:
        while not self._stop.is_set():
            pause_s, wanted = self.keep_once()
            with self._due:
                if not self._stop.is_set() and self._wanted == wanted:
                    self._due.wait(pause_s)
        try:
            self._keeper.release()
        except Exception as error:
            _log.warning("leases run out by themselves: %s", _reason(error))

    def keep_once(self) -> tuple[float, frozenset[str]]:
        """Return how long to wait, and for which leases this was."""
        began_s, wanted = self._clock(), self._wanted
        try:
            kept = frozenset(self._keeper.keep(wanted))
        except Exception as error:  # whatever it was: without this thread, nothing leads any more
            _log.warning("election: %s", _reason(error))
            return _RETRY_S, wanted
        self._tell(kept)
        self._kept_s, self._kept, self.answered = began_s, kept, True
        return 0.0 if self._keeper.unfinished else RENEW_S, wanted

    def _tell(self, kept: frozenset[str]) -> None:
        for words, names in (("leads", kept - self._kept), ("leads no longer", self._kept - kept)):
            few = ", ".join(sorted(names)[:3])
            if names:
                _log.info("%s %d: %s%s", words, len(names), few, ", ..." if len(names) > 3 else "")


def _reason(error: Exception) -> str:
    """Return what went wrong, with its kind where the words alone may say little."""
    return str(error) if isinstance(error, HrlPlannerError | HTTPError) else repr(error)
