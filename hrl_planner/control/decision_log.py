"""Writing the decision log: every round becomes a line (`log_lines.py` has the format).

Lines go through a handler of `logging`, which knows how to write to a stream, how to rotate a file,
and that a full disk is no reason for a planner to stop. Every file can be read on its own: the
clusters that its rounds name stand in it.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from hrl_planner.control.decision import Decision, Followed
from hrl_planner.control.global_planner import GlobalRound
from hrl_planner.control.local_planner import LocalRound
from hrl_planner.control.log_lines import ClusterLine, DecisionLine, RoundLine
from hrl_planner.errors import DecisionLogError
from hrl_planner.spec import ClusterSpec

Round = GlobalRound | LocalRound

_FILE_BYTES = 64 << 20
_FILES = 8
_TOLD_AGAIN_S = 3600.0  # so that the newer part of a stream can be read without the older


def to_stdout() -> logging.Handler:
    """Return the place where a pod's decisions go."""
    return logging.StreamHandler(sys.stdout)


def to_file(path: Path) -> logging.Handler:
    """Return a file of at most 64 MiB; the seven before it are kept as `PATH.1` and so on.

    Raises:
        DecisionLogError: it cannot be written.
    """
    try:
        return RotatingFileHandler(
            path, maxBytes=_FILE_BYTES, backupCount=_FILES - 1, encoding="utf-8"
        )
    except OSError as error:
        raise DecisionLogError(f"--log {path}: {error.strerror}") from error


class DecisionLog:
    """Writes rounds.

    Args:
        to: where to.
        by: this process.
        namespace: of its planners.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        to: logging.Handler,
        by: str,
        namespace: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """See the class."""
        self._to, self._by, self._namespace, self._clock = to, by, namespace, clock
        self._lock = threading.Lock()
        self._lines: dict[tuple[str, str], tuple[ClusterSpec, ClusterLine]] = {}
        self._told_s: dict[str, float] = {}  # hash of a cluster, and when it was written

    def write(self, name: str, done: Round | Followed, took_s: float) -> None:
        """Write a round of the planner of this name; may be called from any thread."""
        with self._lock:
            self._write(name, done, took_s)

    def _write(self, name: str, done: Round | Followed, took_s: float) -> None:
        now_s = round(self._clock(), 3)
        decision = done.decision
        cluster = None if decision is None else self._described(decision, now_s)
        made = None
        if decision is not None and cluster is not None:
            pool = name if decision.choice.level == "scaler" else None
            made = DecisionLine.of(decision, cluster.hash, pool)
        line = self._line(name, done, took_s, now_s, made)
        text = line.model_dump_json(exclude_defaults=True)
        record = self._record(text, cluster, now_s)
        if isinstance(self._to, RotatingFileHandler) and self._to.shouldRollover(record):
            self._to.doRollover()
            self._told_s.clear()
            record = self._record(text, cluster, now_s)
        self._to.handle(record)

    def close(self) -> None:
        """Let go of the file."""
        self._to.close()

    def _described(self, decision: Decision, now_s: float) -> ClusterLine:
        """Return the line of a cluster; a group's is made once per change and level."""
        spec, key = decision.spec, (decision.spec.name, decision.choice.level)
        known = self._lines.get(key)
        if known is None or known[0] != spec:
            known = self._lines[key] = (spec, ClusterLine.of(spec, now_s))
        return known[1]

    def _record(self, text: str, cluster: ClusterLine | None, now_s: float) -> logging.LogRecord:
        """Return what to write: the round, after its cluster where that was not told lately."""
        if cluster is not None and now_s - self._told_s.get(cluster.hash, 0.0) > _TOLD_AGAIN_S:
            self._told_s[cluster.hash] = now_s
            described = cluster.model_copy(update={"time": now_s})
            text = f"{described.model_dump_json()}\n{text}"
        return logging.makeLogRecord({"msg": text})

    def _line(
        self,
        name: str,
        done: Round | Followed,
        took_s: float,
        now_s: float,
        made: DecisionLine | None,
    ) -> RoundLine:
        common: dict[str, Any] = {
            "format": 1,
            "kind": "round",
            "time": now_s,
            "by": self._by,
            "namespace": self._namespace,
            "name": name,
            "took_s": round(took_s, 4),
            "decision": made,
        }
        if isinstance(done, Followed):
            scales = done.decision is not None and done.decision.choice.level == "scaler"
            level = "local" if scales else "global"
            return RoundLine(level=level, group=done.group, mode=done.mode, **common)
        common |= {"mode": done.mode, "error": done.error, "written": list(done.written)}
        if isinstance(done, GlobalRound):
            return RoundLine(
                level="global",
                group=name,
                waits=dict(done.settlement.waits),
                quotas=dict(done.quotas),
                used={key: n if math.isfinite(n) else None for key, n in done.used.items()},
                **common,
            )
        return RoundLine(
            level="local",
            group=done.group,
            waits={name: done.waits} if done.waits else {},
            quotas={name: done.quota},
            wanted=done.wanted,
            targets=(done.before, done.target),
            pods=(done.pods.ready, done.pods.starting, done.pods.draining, done.pods.pending),
            **common,
        )
