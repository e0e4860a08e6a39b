"""The local planner of one pool: scales its target within the quota, and keeps the pool's book.

Every round reads pool, target and pods, asks the policy how many replicas there should be, and
takes the ledger's steps until nothing more may be written. What it saw and did it reports in the
pool's status; `acknowledged` names the last quota its target keeps to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hrl_planner.control.conditions import reason_of
from hrl_planner.control.connector import Connector, UnreadableError
from hrl_planner.control.decide import Scaler
from hrl_planner.control.local_status import Seen, Trouble, book_of, conditions_of, numbers_of
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.pool_list import PoolList
from hrl_planner.control.requests import DeniedError, NotFoundError
from hrl_planner.control.targets import TargetError, TargetState
from hrl_planner.control.telling import Telling
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import reservation_of
from hrl_planner.kube.resources import ServingGroup, WorkerPool
from hrl_planner.ledger import (
    Idle,
    PoolView,
    ReadFresh,
    Step,
    WriteReservation,
    WriteTarget,
    next_step,
)

_log = logging.getLogger(__name__)

SETTLE_S = 30.0
_MOST_STEPS = 8  # of one round: settle a claim, count, lower, claim, scale, and conflicts
COMPONENT = "hrl-planner-local"


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What a round read, decided and did; the line of the decision log."""

    wanted: int | None
    reason: str
    waits: str
    written: tuple[str, ...]
    error: str = ""


class LocalPlanner:
    """See the module.

    Args:
        connector: of the pool's namespace.
        name: of the pool.
        metrics: what is known of the traffic.
        clock: seconds, monotonic.
        settle_s: how long a target must be unchanged before its pods are all there will be.
        dry_run: write nothing.
    """

    def __init__(
        self,
        connector: Connector,
        name: str,
        metrics: PoolMetrics,
        clock: Callable[[], float],
        *,
        settle_s: float = SETTLE_S,
        dry_run: bool = False,
    ) -> None:
        """See the class."""
        self.name = name
        self.interval_s = 10.0
        self._connector = connector
        self._scaler = Scaler(metrics)
        self._clock = clock
        self._settle_s = settle_s
        self._dry_run = dry_run
        self._unchanged = ("", clock())  # what is asked of the target, and since when
        self._telling = Telling(connector, "WorkerPool", COMPONENT)

    def round(self) -> LocalRound:
        """Look once, decide, write what is allowed.

        Raises:
            KubeError: if the API server refuses or does not know the pool.
        """
        try:
            pool = self._connector.pool(self.name)
        except UnreadableError as error:
            if not self._dry_run:
                self._telling.unreadable(error, "Decided")
            raise
        listed = self._connector.pools()
        group, trouble = self._group(pool)
        wanted, reason = None, "holds"
        if group is not None:
            self.interval_s = group.spec.intervals.local_s
            wanted, reason, trouble = self._want(group, listed)
        rival = listed.taken.get(pool.name)
        active = group is not None and group.spec.policy.mode == "active" and rival is None
        troubles = [trouble] if trouble is not None else []
        if rival is not None:
            message = f"workerpool {rival} scales the same target, and is older"
            troubles.append(Trouble("Unhindered", "TargetTaken", message))
        seen, step, written, denied = self._act(wanted, active=active)
        troubles += [t for t in (seen.trouble, denied) if t is not None]
        waits = step.waits if isinstance(step, Idle) else ""
        if rival is not None or denied is not None:
            waits = troubles[-1].message
        if self._dry_run:
            if not isinstance(step, Idle):
                written.append(f"would write {step}")
        else:
            self._report(seen, wanted, reason, waits, troubles)
        return LocalRound(
            wanted, reason, waits, tuple(written), "; ".join(t.message for t in troubles)
        )

    def _group(self, pool: WorkerPool) -> tuple[ServingGroup | None, Trouble | None]:
        """Return the pool's group; without one nobody says how to plan, and nothing is scaled."""
        try:
            return self._connector.group(pool.spec.group), None
        except NotFoundError:
            message = f"servinggroup {pool.spec.group} does not exist"
            return None, Trouble("Decided", "NoGroup", message)
        except UnreadableError as error:
            return None, Trouble("Decided", "GroupUnreadable", str(error))
        except DeniedError as error:
            return None, Trouble("Decided", "Denied", str(error))

    def _want(
        self, group: ServingGroup, everything: PoolList
    ) -> tuple[int | None, str, Trouble | None]:
        of_group = tuple(p for p in everything.pools if p.spec.group == group.metadata.name)
        mine = next((pool for pool in of_group if pool.name == self.name), None)
        # What a policy makes of numbers that are not there yet could be carried out as soon as the
        # quota comes, in this very round.
        if mine is not None and mine.spec.quota is None:
            return None, "no quota yet", None
        if mine is not None and mine.status.desired is None:
            return None, "replicas not reported yet", None
        listed = PoolList(of_group, taken=everything.taken)
        try:
            wanted, reason = self._scaler.want(group, listed, self.name, self._clock())
        except HrlPlannerError as error:
            return None, "holds", Trouble("Decided", reason_of(error, "Holds"), str(error))
        return wanted, reason, None

    def _act(
        self, wanted: int | None, *, active: bool
    ) -> tuple[Seen, Step, list[str], Trouble | None]:
        """Take the ledger's steps until nothing more may be written."""
        written: list[str] = []
        step: Step = Idle()
        seen = self._look()
        for _ in range(_MOST_STEPS):
            step = Idle() if seen.trouble else self._step(seen, wanted, active=active)
            if self._dry_run or isinstance(step, Idle | ReadFresh):
                break
            try:
                done = self._write(seen, step)
            except DeniedError as error:
                return seen, step, written, Trouble("Unhindered", "Denied", str(error))
            if done is not None:
                written.append(done)
            # If somebody else was faster, the next look shows what is there now.
            seen = self._look()
        return seen, step, written, None

    def _look(self) -> Seen:
        """Read the book first, then what it is about."""
        pool = self._connector.pool(self.name)
        try:
            target = self._connector.targets.read(pool.spec.scale_target_ref)
        except TargetError as error:
            return Seen(pool, trouble=Trouble("TargetFound", error.reason, str(error)))
        labels = pool.spec.pod_selector
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        # Pods of a target that is gone still hold GPUs until they are.
        selector = selector or target.selector or pool.status.selector
        try:
            pods = self._connector.pods(selector, pool.spec.pods_per_replica)
        except DeniedError as error:
            return Seen(pool, target, trouble=Trouble("PodsCounted", "Denied", str(error)))
        return Seen(pool, target, pods, self._settled(target, pool), selector)

    def _settled(self, target: TargetState, pool: WorkerPool) -> bool:
        """Say whether the target has been unchanged for longer than its controller lags."""
        asked = target.target.spec_version
        if target.shared:
            # Others change the object, too. That this target was not raised and lowered again
            # between two looks shows in the book: a raise leaves the reservation higher.
            asked = f"{asked.partition('/')[0]}/{target.target.replicas}/{pool.status.reserved}"
        now_s = self._clock()
        if asked != self._unchanged[0]:
            self._unchanged = (asked, now_s)
        caught_up = target.observed == target.target.replicas
        return caught_up and now_s - self._unchanged[1] >= self._settle_s

    def _step(self, seen: Seen, wanted: int | None, *, active: bool) -> Step:
        pool, target = seen.pool, seen.target.target
        leaving = pool.metadata.deletion_timestamp is not None
        quota = 0 if leaving else pool.spec.quota
        view = PoolView(
            # A pool without quota is left alone, and so is every pool in shadow mode.
            quota=quota if active else None,
            reservation=reservation_of(pool),
            target=target,
            pods=seen.pods.ledger,
            settled=seen.settled,
            fresh=True,
        )
        return next_step(view, target.replicas if wanted is None else wanted)

    def _write(self, seen: Seen, step: Step) -> str | None:
        """Carry out a step; None if there is none, or if somebody else was faster."""
        ref = seen.pool.spec.scale_target_ref
        if isinstance(step, WriteTarget):
            words = f"{ref.kind} {ref.name}: {seen.target.target.replicas} -> {step.replicas}"
            if not self._connector.targets.scale(ref, step.replicas, step.version):
                return None
            self._telling.tell(seen.pool.metadata, "Scaled", words)
            return words
        if isinstance(step, WriteReservation):
            status = book_of(step.reservation)
            if not self._connector.write_pool_status(seen.pool, status):
                return None
            return f"reserved {step.reservation.replicas}, claim {step.reservation.claim}"
        return None

    def _report(
        self,
        seen: Seen,
        wanted: int | None,
        reason: str,
        waits: str,
        troubles: Sequence[Trouble],
    ) -> None:
        pool, before = seen.pool, seen.pool.status.conditions
        conditions = conditions_of(seen, waits, troubles)
        status: dict[str, Any] = {
            "observedGeneration": pool.metadata.generation,
            "reason": waits or reason,
            "conditions": conditions,
        }
        if seen.trouble is None:
            status |= numbers_of(seen, wanted)
        now = pool.status.model_dump(mode="json", by_alias=True)
        if all(now.get(name) == value for name, value in status.items()):
            return
        try:
            written = self._connector.write_pool_status(pool, status)
        except DeniedError as error:
            self._telling.denied(pool.metadata, str(error))
            raise
        if written:
            self._telling.conditions(pool.metadata, before, conditions)
