"""The lines of the decision log: one format for whoever writes it and whoever reads it.

    {"format": 1, "kind": "cluster", ...}   a cluster, before the first round that names its hash
    {"format": 1, "kind": "round", ...}     a round: what was read, decided and written

A round names its cluster and the columns of its rows by that hash, so that a line holds numbers and
few words. Unknown numbers are null. docs/decision-log.md has every field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hrl_planner.control.decision import Asked, Choice, Decision, decides_pool_by_pool
from hrl_planner.observation import (
    CLASS_FIELDS,
    POOL_FIELDS,
    ClusterObservation,
    Float64Array,
)
from hrl_planner.profile import WorkerProfile
from hrl_planner.spec import ClusterSpec

Number = int | float | None
Rows = dict[str, list[Number]]


class _Model(BaseModel):
    # What a later version adds is no reason not to read the rest.
    model_config = ConfigDict(extra="ignore", frozen=True)


class ClusterLine(_Model):
    """A cluster that decisions are made for."""

    format: Literal[1]
    kind: Literal["cluster"]
    time: float
    hash: str = Field(description="of all that follows")
    spec: dict[str, Any] = Field(description="the cluster spec")
    profiles: dict[str, str] = Field(description="hash of each profile's numbers")
    pool_fields: list[str] = Field(description="columns of a pool's row")
    class_fields: list[str] = Field(description="columns of a class's row")

    @staticmethod
    def of(spec: ClusterSpec, time_s: float) -> ClusterLine:
        """Describe a cluster."""
        content: dict[str, Any] = {
            "spec": spec.model_dump(mode="json"),
            "profiles": {
                pool.profile: profile_hash(profile)
                for pool, profile in zip(spec.pools, spec.profiles(), strict=True)
            },
            "pool_fields": list(POOL_FIELDS),
            "class_fields": list(CLASS_FIELDS),
        }
        text = json.dumps(content, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return ClusterLine(format=1, kind="cluster", time=time_s, hash=name, **content)

    @cached_property
    def cluster(self) -> ClusterSpec:
        """The spec.

        Raises:
            SpecError: this version, or this machine's profiles, cannot make one of it.
        """
        return ClusterSpec.from_dict(self.spec, where=f"cluster {self.hash} of the decision log")

    def other_profiles(self) -> list[str]:
        """Return the profiles whose numbers are not those that were decided with."""
        spec = self.cluster
        return sorted(
            {
                pool.profile
                for pool, profile in zip(spec.pools, spec.profiles(), strict=True)
                if profile_hash(profile) != self.profiles.get(pool.profile)
            }
        )


class ShieldLine(_Model):
    """An intervention of the shield."""

    action: str
    cause: str
    reason: str


class DecisionLine(_Model):
    """What a policy was asked and answered, see `Decision`."""

    cluster: str = Field(description="hash of its line")
    policy: str
    checkpoint: str | None = None
    asked: Asked = "decide"
    digest: str = ""
    turn: int
    now_s: float
    pools: Rows
    classes: Rows
    replicas: dict[str, int] = {}
    flows: dict[str, dict[str, float]] | None = None
    reason: str = ""
    marginal: dict[str, float] = {}
    shield: list[ShieldLine] = []
    took_s: float = 0.0

    @staticmethod
    def of(decision: Decision, cluster: str, pool: str | None = None) -> DecisionLine:
        """Describe a decision.

        Args:
            decision: it.
            cluster: hash of its cluster.
            pool: the one it was made for, of which alone the answer is written down, and the row,
                if the policy looked at no other; absent: it was made for all.
        """
        spec, seen = decision.spec, decision.observation
        pools = _written([p.name for p in spec.pools], seen.pools)
        replicas = decision.replicas
        if pool is not None:
            replicas = {pool: replicas[pool]}
            if decides_pool_by_pool(decision.choice):
                pools = {pool: pools[pool]}
        return DecisionLine(
            cluster=cluster,
            policy=decision.choice.policy,
            checkpoint=decision.choice.checkpoint,
            asked=decision.asked,
            digest=decision.digest,
            turn=decision.turn,
            now_s=seen.now_s,
            pools=pools,
            classes=_written([cls.name for cls in spec.slo_classes], seen.classes),
            replicas=replicas,
            flows=decision.flows,
            reason=decision.plan.reason,
            marginal=decision.marginal,
            shield=[
                ShieldLine(action=i.action, cause=i.cause, reason=i.reason)
                for i in decision.interventions
            ],
            took_s=round(decision.took_s, 6),
        )

    def observation(self, cluster: ClusterLine) -> ClusterObservation:
        """Return what was seen; what a row does not have is unknown.

        Where one pool's row alone was written down, the others have the same.
        """
        spec = cluster.cluster
        names = [pool.name for pool in spec.pools]
        alone = next(iter(self.pools)) if len(self.pools) == 1 else None
        rows = {name: self.pools.get(name) or self.pools.get(alone or "", []) for name in names}
        classes = [cls.name for cls in spec.slo_classes]
        return ClusterObservation(
            self.now_s,
            _read(rows, names, cluster.pool_fields, POOL_FIELDS),
            _read(self.classes, classes, cluster.class_fields, CLASS_FIELDS),
        )

    def choice(self, level: Literal["global", "local"]) -> Choice:
        """Return the policy that decided."""
        return Choice("allocator" if level == "global" else "scaler", self.policy, self.checkpoint)


class RoundLine(_Model):
    """A round of a planner."""

    format: Literal[1]
    kind: Literal["round"]
    time: float = Field(description="at its end, seconds since 1970")
    by: str = Field(description="the process")
    namespace: str
    level: Literal["global", "local"]
    name: str = Field(description="of the group, or of the pool")
    group: str
    mode: str = Field(
        description="active, shadow; standby: another process leads; failed: it came to no end"
    )
    took_s: float
    decision: DecisionLine | None = Field(None, description="absent: none was due, or see error")
    error: str = Field("", description="why there is no decision")
    waits: dict[str, str] = Field({}, description="by pool, why it has not got what was decided")
    written: list[str] = Field([], description="writes that the API server accepted")
    quotas: dict[str, int | None] = Field({}, description="by pool, at the end of the round")
    used: dict[str, float | None] = Field(
        {}, description="global: of each resource, granted or held; null: unknown"
    )
    wanted: int | None = Field(None, description="local: replicas the policy would have")
    targets: tuple[int, int] | None = Field(
        None, description="local: replicas asked for, before and after"
    )
    pods: tuple[int, int, int, int] | None = Field(
        None, description="local: ready, starting, draining, pending"
    )

    @property
    def stream(self) -> tuple[str, str, str, str]:
        """Whose policy decided: rounds of one stream share its memory."""
        return self.by, self.namespace, self.level, self.name


def profile_hash(profile: WorkerProfile) -> str:
    """Return what tells the numbers of two profiles apart."""
    found = hashlib.sha256()
    for values in (
        profile.prefill_batch,
        profile.prefill_new_tokens,
        profile.prefill_prefix_tokens,
        profile.prefill_ms,
        profile.decode_batch,
        profile.decode_context_tokens,
        profile.decode_ms,
        np.array([profile.kv_capacity_tokens, profile.kv_bytes_per_token, profile.tp]),
    ):
        found.update(np.ascontiguousarray(values, np.float64).tobytes())
    return found.hexdigest()[:16]


def _written(names: Sequence[str], rows: Float64Array) -> Rows:
    return {name: [_number(v) for v in row] for name, row in zip(names, rows.tolist(), strict=True)}


def _number(value: float) -> Number:
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def _read(
    rows: Mapping[str, Sequence[Number]],
    names: Sequence[str],
    columns: Sequence[str],
    wanted: Sequence[str],
) -> Float64Array:
    read = np.full((len(names), len(wanted)), np.nan)
    for row, name in zip(read, names, strict=True):
        values = dict(zip(columns, rows.get(name, ()), strict=False))
        for index, column in enumerate(wanted):
            value = values.get(column)
            if value is not None:
                row[index] = value
    return read
