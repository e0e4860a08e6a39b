"""The local planner of one pool: scales its target within the quota, and keeps the pool's book.

Every round looks at pool, target and pods, asks the policy how many replicas there should be if
it is time to, and takes the ledger's steps until nothing more may be written. What it looks at
first may be as old as a watch; what the ledger wants to know for certain is read from the API
server. What it saw and did it reports in the pool's status; `acknowledged` names the last quota
its target keeps to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from hrl_planner.control.conditions import condition, event
from hrl_planner.control.connector import Connector
from hrl_planner.control.decide import Scaler, Want, decides_nothing
from hrl_planner.control.decision import Decision
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.pods import PodCounts
from hrl_planner.control.targets import TargetState
from hrl_planner.control.watched import Reader
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import reservation_of
from hrl_planner.kube.resources import ServingGroup, WorkerPool
from hrl_planner.ledger import (
    Idle,
    PoolView,
    ReadFresh,
    Reservation,
    Step,
    WriteReservation,
    WriteTarget,
    next_step,
)
from hrl_planner.ledger.replicas import MISSING

SETTLE_S = 30.0
# Of one round: settle a claim, count, lower, claim, scale, each perhaps after reading afresh.
_MOST_STEPS = 12
_ATTAINMENT_STEP = 0.02  # a smaller change of a measured share is not worth a write
COMPONENT = "hrl-planner-local"


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What a round read, decided and did.

    Attributes:
        group: of the pool.
        mode: shadow or active.
        wanted: replicas the policy would have; None if it could not be asked.
        reason: of the policy, or why it was not asked.
        waits: why the target has not got what is wanted.
        written: writes that were accepted, in words.
        quota: at the end of the round.
        before: replicas the target was asked for at its beginning.
        target: and at its end.
        pods: of the target.
        held_gpus: by them.
        decision: made in this round; None where the last one still stands, or there is none.
        error: why the policy could not be asked.
    """

    group: str
    mode: str
    wanted: int | None
    reason: str
    waits: str
    written: tuple[str, ...]
    quota: int | None
    before: int
    target: int
    pods: PodCounts
    held_gpus: int
    decision: Decision | None = None
    error: str = ""


class _Wants(NamedTuple):
    """What the policy wants, or why there is nothing it wants, and what kept it from deciding."""

    want: Want | None = None
    reason: str = ""
    error: str = ""

    @property
    def replicas(self) -> int | None:
        return None if self.want is None else self.want.replicas


@dataclass(frozen=True, slots=True)
class _Seen:
    pool: WorkerPool
    target: TargetState
    pods: PodCounts
    settled: bool
    fresh: bool

    @property
    def held(self) -> int:
        """Replicas that hold GPUs."""
        return self.pods.ready + self.pods.starting + self.pods.draining


class LocalPlanner:
    """See the module.

    Args:
        connector: of the pool's namespace.
        name: of the pool.
        metrics: what is known of the traffic.
        clock: seconds, monotonic.
        look: where to look first; absent: at the API server itself.
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
        look: Reader | None = None,
        settle_s: float = SETTLE_S,
        dry_run: bool = False,
    ) -> None:
        """See the class."""
        self.name = name
        self.interval_s = 10.0
        self._connector = connector
        self._look_at = look or connector
        self._scaler = Scaler(metrics)
        self._clock = clock
        self._settle_s = settle_s
        self._dry_run = dry_run
        self._unchanged = ("", clock())  # version of the target's spec, and since when
        self._wants = _Wants()
        self._next_s = -math.inf  # of a decision

    def round(self) -> LocalRound:
        """Look once, decide, write what is allowed.

        Raises:
            KubeError: if the API server refuses or does not know the pool.
        """
        pool = self._look_at.pool(self.name)
        group = self._look_at.group(pool.spec.group)
        self.interval_s = group.spec.intervals.local_s
        pools = self._look_at.pools().pools
        decided = self._decide(group, pools)
        wanted = self._wants.replicas
        rival = _older_claimant(pool, pools)
        active = group.spec.policy.mode == "active" and rival is None
        written: list[str] = []
        step: Step = Idle()
        seen = self._look(pool, self._look_at, fresh=False)
        before = seen.target.target.replicas
        for _ in range(_MOST_STEPS):
            step = self._step(seen, wanted, active=active)
            if isinstance(step, ReadFresh):
                seen = self._look(seen.pool, self._connector, fresh=True)
                continue
            done = None if self._dry_run else self._write(seen, step)
            if done is None:
                break
            words, seen = done
            written.append(words)
        waits = step.waits if isinstance(step, Idle) else ""
        if rival is not None:
            waits = f"workerpool {rival} scales the same target, and is older"
        if not self._dry_run:
            self._report(seen, waits)
        elif not isinstance(step, Idle):
            written.append(f"would write {step}")
        return LocalRound(
            group.metadata.name,
            group.spec.policy.mode,
            wanted,
            self._wants.reason,
            waits,
            tuple(written),
            seen.pool.spec.quota,
            before,
            seen.target.target.replicas,
            seen.pods,
            seen.held * (seen.pool.spec.gpus_per_replica or 0),
            self._wants.want.decision if decided and self._wants.want is not None else None,
            self._wants.error,
        )

    def _decide(self, group: ServingGroup, pools: Sequence[WorkerPool]) -> bool:
        """Ask the policy if it is time to; a round in between carries out what was decided."""
        of_group = [pool for pool in pools if pool.spec.group == group.metadata.name]
        mine = next((pool for pool in of_group if pool.name == self.name), None)
        # What a policy makes of numbers that are not there yet could be carried out as soon as the
        # quota comes, in this very round.
        if mine is not None and mine.spec.quota is None:
            self._wants = _Wants(reason="no quota yet")
            return False
        if mine is not None and mine.status.desired is None:
            self._wants = _Wants(reason="replicas not reported yet")
            return False
        now_s = self._clock()
        if now_s < self._next_s and not decides_nothing(group):
            return False
        self._next_s = now_s + self.interval_s
        try:
            want = self._scaler.want(group, of_group, self.name, now_s)
            self._wants = _Wants(want, want.reason)
        except HrlPlannerError as error:
            self._wants = _Wants(None, "holds", str(error))
        return True

    def _look(self, pool: WorkerPool, at: Reader, *, fresh: bool) -> _Seen:
        """Look at what the book, read before, is about."""
        target = at.target(pool.spec.scale_target_ref)
        labels = pool.spec.pod_selector
        selector = ",".join(f"{key}={value}" for key, value in labels.items()) or target.selector
        pods = at.pods(selector)
        now_s = self._clock()
        if target.target.spec_version != self._unchanged[0]:
            self._unchanged = (target.target.spec_version, now_s)
        caught_up = target.observed == target.target.replicas
        settled = caught_up and now_s - self._unchanged[1] >= self._settle_s
        return _Seen(pool, target, pods, settled, fresh)

    def _step(self, seen: _Seen, wanted: int | None, *, active: bool) -> Step:
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
            fresh=seen.fresh,
        )
        return next_step(view, target.replicas if wanted is None else wanted)

    def _write(self, seen: _Seen, step: Step) -> tuple[str, _Seen] | None:
        """Carry out a step, and say in words what was done, and how things are then.

        None if there is nothing to write, or if somebody else was faster.
        """
        ref = seen.pool.spec.scale_target_ref
        if isinstance(step, WriteTarget):
            words = f"{ref.kind} {ref.name}: {seen.target.target.replicas} -> {step.replicas}"
            if not self._connector.targets.scale(ref, step.replicas, step.version):
                return None
            self._tell(seen.pool, "Scaled", words)
            return words, self._look(seen.pool, self._connector, fresh=True)
        if isinstance(step, WriteReservation):
            pool = self._connector.write_pool_status(seen.pool, _book(step.reservation))
            if pool is None:
                return None
            words = f"reserved {step.reservation.replicas}, claim {step.reservation.claim}"
            # Target and pods were read before this book: not fresh beside it.
            return words, replace(seen, pool=pool, fresh=False)
        return None

    def _report(self, seen: _Seen, waits: str) -> None:
        pool, target, pods, held = seen.pool, seen.target.target, seen.pods, seen.held
        want, reason, error = self._wants
        status: dict[str, Any] = {
            "observedGeneration": pool.metadata.generation,
            "desired": target.replicas,
            "wanted": None if want is None else want.replicas,
            "replicas": held,
            "ready": pods.ready,
            "starting": pods.starting,
            "draining": pods.draining,
            "heldGpus": held * (pool.spec.gpus_per_replica or 0),
            "attainment": _attainment(pool, want),
            "selector": seen.target.selector,
            "reason": waits or reason,
            "conditions": self._conditions(seen, waits, error),
        }
        if pool.spec.quota is not None and target.replicas <= pool.spec.quota:
            acknowledged = {"quota": pool.spec.quota, "sequence": pool.spec.quota_sequence}
            status["acknowledged"] = acknowledged
        now = pool.status.model_dump(mode="json", by_alias=True)
        if any(now.get(name) != value for name, value in status.items()):
            self._connector.write_pool_status(pool, status)

    def _conditions(self, seen: _Seen, waits: str, error: str) -> list[dict[str, Any]]:
        before, found = seen.pool.status.conditions, seen.target.target != MISSING
        ref = seen.pool.spec.scale_target_ref
        missing = "" if found else f"{ref.kind} {ref.name} does not exist"
        made = [
            condition(before, "TargetFound", found, "Found" if found else "NotFound", missing),
            condition(before, "Decided", not error, "Holds" if error else "Policy", error),
            condition(before, "Unhindered", not waits, "Waits" if waits else "Free", waits),
        ]
        # As the status is read back, so that an unchanged one is recognised.
        return [{**c, "observedGeneration": None} for c in made]

    def _tell(self, pool: WorkerPool, reason: str, message: str) -> None:
        self._connector.event(
            event("WorkerPool", pool.metadata, reason, message, COMPONENT, warning=False)
        )


def _attainment(pool: WorkerPool, want: Want | None) -> float | None:
    """Return the share to report: the one reported already while it is still nearly so."""
    now = math.nan if want is None or want.decision is None else want.decision.attainment(pool.name)
    told = pool.status.attainment
    if math.isnan(now):
        return None
    return told if told is not None and abs(now - told) < _ATTAINMENT_STEP else round(now, 2)


def _older_claimant(pool: WorkerPool, pools: Sequence[WorkerPool]) -> str | None:
    """Return the pool that has the first right to a pool's target, if it is another."""
    oldest = min(
        (p for p in pools if p.spec.scale_target_ref == pool.spec.scale_target_ref),
        key=lambda p: (p.metadata.creation_timestamp or "", p.metadata.uid),
        default=pool,
    )
    return None if oldest.metadata.uid == pool.metadata.uid else oldest.name


def _book(reservation: Reservation) -> dict[str, Any]:
    claim = reservation.claim
    return {
        "reserved": reservation.replicas,
        "claim": claim
        and {
            "start": claim.start,
            "to": claim.to,
            "version": claim.version,
            "specVersion": claim.spec_version,
        },
    }
