"""What happens between two decisions of an agent, compiled: local planners tick while time passes.

A `Control` holds everything of one episode besides the cluster itself: clocks, quotas, the arrays
of the rule-based local planner and of the budget projection, the reward's totals. `run` lets the
rule (or, for pools an agent scales, the agent's number) act every local interval; `read` looks at
the cluster and writes observation and reward. Nothing here decides anything of its own: rule,
projection, features and reward are the functions production and evaluation call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs import reward
from envs.kernel import lifecycle, loop
from envs.kernel.layout import Cluster
from envs.kernel.observe import observe
from hrl_planner._compiled import compiled, merged
from hrl_planner.budget import UNLIMITED, BudgetArrays, project_into
from hrl_planner.encoding import write_vector
from hrl_planner.features import (
    CLASS_FEATURES,
    POOL_FEATURES,
    FeatureScales,
    encode_classes,
    encode_pools,
)
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS
from hrl_planner.planner.network import NO_NET, NetShape, Network
from hrl_planner.planner.rule import RuleParameters, RulePools, rule_targets
from hrl_planner.planner.scaler import CHANGES, scale_pools

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BY_RULE = -1  # Control.override: the rule decides
ALL_POOLS = -1  # Clock.pool: the observation shows all of them

CLOCK = np.dtype(
    [
        ("base_s", np.float64),  # ticks are counted from here
        ("tick", np.int64),  # ticks done since then
        ("local_s", np.float64),
        ("global_s", np.float64),
        ("lag_s", np.float64),
        ("window_s", np.float64),
        ("start_s", np.float64),  # time of day at which the episode begins
        ("ttft_ms", np.float64),  # tightest targets, for the features
        ("itl_ms", np.float64),
        ("total_gpus", np.int64),
        ("watts", np.float64),
        ("pool", np.int64),  # the one pool the observation shows, or ALL_POOLS
        ("max_pools", np.int64),  # sizes of the observation
        ("max_classes", np.int64),
        ("max_types", np.int64),
        ("class_hidden", np.int64),  # sizes of the learned scaler, if there is one
        ("hidden", np.int64),
    ],
    align=True,
)

_TARGET = POOL_FIELDS.index("target_replicas")
_QUOTA = POOL_FIELDS.index("quota")
_N_POOL = len(POOL_FEATURES)
_N_CLASS = len(CLASS_FEATURES)
_N_ACTIONS = len(CHANGES)


class Control(NamedTuple):
    """All arrays of one episode that are not the cluster's.

    Attributes:
        clock: CLOCK record, (1,).
        quota: most replicas per pool, (P,).
        override: replicas an agent wants per pool, or BY_RULE, (P,).
        changed_s: the rule's memory: when each pool was last changed, (P,).
        remembered_s: scratch for it, (P,).
        targets: scratch, (P,).
        current: scratch, (P,).
        wish: what the rule would ask for now, (P,).
        projected: scratch, (P,).
        ones: weights of the projection, (P,).
        wanted: scratch, (P,).
        rows: the last observation, (P, len(POOL_FIELDS)).
        class_rows: (C, len(CLASS_FIELDS)).
        features: float32 (P, len(POOL_FEATURES)).
        class_features: float32 (C, len(CLASS_FEATURES)).
        rule: thresholds of the rule, (9,).
        prefills: see `RulePools`, (P,).
        decodes: (P,).
        saturated_s_per_token: (P,).
        ttft_target_ms: (P,).
        itl_target_ms: (P,).
        minimum: least replicas, (P,).
        maximum: most replicas, (P,).
        gpus: GPUs per replica, (P,).
        type_index: (P,).
        type_budget: (T,).
        watts_per_replica: (P,).
        pool_static: see `FeatureScales`, (P, 8).
        class_static: (C, 3).
        max_num_seqs: (P,).
        per_attained: see `reward_scales`, (C,).
        per_gpu_s: (P,).
        per_replica: (P,).
        counted: totals of the reward, (C + 2 P,).
        terms: the last step's reward by term, (3,).
        net: a packed scaler, float32 (K,); empty where the rule scales.
        limits: see `FeatureScales`, (P, 7).
    """

    clock: NDArray[np.void]
    quota: FloatArray
    override: IntArray
    changed_s: FloatArray
    remembered_s: FloatArray
    targets: IntArray
    current: IntArray
    wish: IntArray
    projected: IntArray
    ones: FloatArray
    wanted: FloatArray
    rows: FloatArray
    class_rows: FloatArray
    features: NDArray[np.float32]
    class_features: NDArray[np.float32]
    rule: FloatArray
    prefills: IntArray
    decodes: IntArray
    saturated_s_per_token: FloatArray
    ttft_target_ms: FloatArray
    itl_target_ms: FloatArray
    minimum: IntArray
    maximum: IntArray
    gpus: IntArray
    type_index: IntArray
    type_budget: IntArray
    watts_per_replica: FloatArray
    pool_static: FloatArray
    class_static: FloatArray
    max_num_seqs: FloatArray
    per_attained: FloatArray
    per_gpu_s: FloatArray
    per_replica: FloatArray
    counted: FloatArray
    terms: FloatArray
    net: NDArray[np.float32]
    limits: FloatArray


def make_control(
    spec: ClusterSpec,
    scales: tuple[FloatArray, FloatArray, FloatArray],
    sizes: tuple[int, int, int],
    *,
    pool: int = ALL_POOLS,
    start_s: float = 0.0,
    blind_pools: frozenset[int] = frozenset(),
    scaler: Network | None = None,
) -> Control:
    """Allocate the control of an episode.

    Args:
        spec: the cluster.
        scales: from `reward.reward_scales`.
        sizes: pools, classes and GPU types an observation holds.
        pool: the one pool the observation shows, or ALL_POOLS.
        start_s: time of day at which the episode begins.
        blind_pools: pools whose profile planners must not use.
        scaler: a learned local planner; None for the rule.
    """
    n, c = len(spec.pools), len(spec.slo_classes)
    rule = RulePools.from_spec(spec, blind_pools)
    budget = BudgetArrays.from_spec(spec)
    features = FeatureScales.from_spec(spec)
    initial = np.array([p.initial for p in spec.pools], np.float64)
    return Control(
        clock=_clock(spec, sizes, pool, start_s, budget, features, scaler),
        quota=initial,
        override=np.full(n, BY_RULE, np.int64),
        changed_s=np.full(n, -np.inf),
        remembered_s=np.zeros(n),
        targets=np.zeros(n, np.int64),
        current=np.zeros(n, np.int64),
        wish=np.zeros(n, np.int64),
        projected=np.zeros(n, np.int64),
        ones=np.ones(n),
        wanted=np.zeros(n),
        rows=np.zeros((n, len(POOL_FIELDS))),
        class_rows=np.zeros((c, len(CLASS_FIELDS))),
        features=np.zeros((n, _N_POOL), np.float32),
        class_features=np.zeros((c, _N_CLASS), np.float32),
        rule=RuleParameters().to_array(),
        prefills=rule.prefills,
        decodes=rule.decodes,
        saturated_s_per_token=rule.saturated_s_per_token,
        ttft_target_ms=rule.ttft_target_ms,
        itl_target_ms=rule.itl_target_ms,
        minimum=rule.minimum,
        maximum=rule.maximum,
        gpus=budget.gpus,
        type_index=budget.type_index,
        type_budget=budget.type_budget,
        watts_per_replica=budget.watts_per_replica,
        pool_static=features.pool_static,
        class_static=features.class_static,
        max_num_seqs=features.max_num_seqs,
        per_attained=scales[0],
        per_gpu_s=scales[1],
        per_replica=scales[2],
        counted=np.zeros(c + 2 * n),
        terms=np.zeros(len(reward.TERMS)),
        net=NO_NET if scaler is None else scaler.net,
        limits=features.limits,
    )


def _clock(
    spec: ClusterSpec,
    sizes: tuple[int, int, int],
    pool: int,
    start_s: float,
    budget: BudgetArrays,
    features: FeatureScales,
    scaler: Network | None,
) -> NDArray[np.void]:
    clock = np.zeros(1, CLOCK)
    intervals = spec.intervals
    clock["local_s"] = intervals.local_s
    clock["global_s"] = intervals.global_s
    clock["lag_s"] = intervals.scrape_lag_s
    clock["window_s"] = intervals.window_s
    clock["start_s"] = start_s
    clock["ttft_ms"] = features.ttft_ms
    clock["itl_ms"] = features.itl_ms
    clock["total_gpus"] = budget.total_gpus
    clock["watts"] = budget.watts
    clock["pool"] = pool
    clock["max_pools"], clock["max_classes"], clock["max_types"] = sizes
    if scaler is not None:
        clock["class_hidden"], clock["hidden"] = scaler.shape.class_hidden, scaler.shape.hidden
    return clock


@compiled
def rule_pools(control: Control) -> RulePools:
    """Return the rule's arrays."""
    return RulePools(
        control.prefills,
        control.decodes,
        control.saturated_s_per_token,
        control.ttft_target_ms,
        control.itl_target_ms,
        control.minimum,
        control.maximum,
    )


@compiled
def _scales(control: Control) -> FeatureScales:
    clock = control.clock[0]
    return FeatureScales(
        control.pool_static,
        control.maximum.astype(np.float64),
        control.max_num_seqs,
        control.gpus.astype(np.float64),
        control.type_index,
        control.type_budget.astype(np.float64),
        control.class_static,
        clock.ttft_ms,
        clock.itl_ms,
        control.limits,
    )


@merged
def _decide(control: Control, pools: RulePools, now_s: float) -> None:
    """Write the targets of all pools: the local planner's, or an agent's where it has set one."""
    clock = control.clock[0]
    control.remembered_s[:] = control.changed_s
    scale_pools(
        control.rows,
        control.class_rows,
        pools,
        control.rule,
        _scales(control),
        now_s,
        clock.start_s,
        clock.global_s,
        control.quota,
        control.changed_s,
        control.net,
        NetShape(clock.class_hidden, clock.hidden, 0, 0, _N_ACTIONS, 0),
        control.targets,
    )
    for i in range(control.targets.size):
        control.current[i] = np.int64(control.rows[i, _TARGET])
        if control.override[i] != BY_RULE:
            limit = min(np.int64(control.quota[i]), control.maximum[i])
            control.targets[i] = min(control.override[i], limit)
            changed = control.targets[i] != control.current[i]
            control.changed_s[i] = now_s if changed else control.remembered_s[i]
        control.wanted[i] = control.targets[i]


@merged
def tick(cluster: Cluster, control: Control) -> None:
    """Let every local planner act once, within its quota and the budget."""
    clock = control.clock[0]
    now_s = cluster.g[0].now_s
    observe(cluster, clock.lag_s, clock.window_s, control.rows, control.class_rows)
    control.rows[:, _QUOTA] = control.quota
    _decide(control, rule_pools(control), now_s)
    budget = BudgetArrays(
        control.minimum,
        control.maximum,
        control.gpus,
        control.type_index,
        control.type_budget,
        clock.total_gpus,
        control.watts_per_replica,
        clock.watts,
    )
    project_into(
        control.wanted, control.current, budget, UNLIMITED, control.ones, 0.0, control.projected
    )
    for i in range(control.quota.size):
        cluster.pools[i].quota = np.int64(control.quota[i])
    lifecycle.set_targets(cluster, control.projected, now_s)


@merged
def run(cluster: Cluster, control: Control, until_s: float) -> None:
    """Let time pass until `until_s`; local planners act at every tick before it."""
    clock = control.clock[0]
    while clock.base_s + clock.tick * clock.local_s < until_s:
        tick_s = clock.base_s + clock.tick * clock.local_s
        if tick_s > cluster.g[0].now_s:
            loop.advance(cluster, tick_s)
        tick(cluster, control)
        clock.tick += 1
    if until_s > cluster.g[0].now_s:
        loop.advance(cluster, until_s)


@compiled
def look(cluster: Cluster, control: Control) -> None:
    """Look at the cluster between two steps: write its rows and nothing else."""
    clock = control.clock[0]
    observe(cluster, clock.lag_s, clock.window_s, control.rows, control.class_rows)


@merged
def read(cluster: Cluster, control: Control, out: NDArray[np.float32]) -> None:
    """Look at the cluster: write its rows, an observation into `out`, and the reward's terms."""
    clock = control.clock[0]
    observe(cluster, clock.lag_s, clock.window_s, control.rows, control.class_rows)
    scales = _scales(control)
    encode_pools(control.rows, scales, control.features)
    encode_classes(control.class_rows, scales, control.class_features)
    control.remembered_s[:] = control.changed_s
    rule_targets(
        control.rows,
        rule_pools(control),
        control.rule,
        cluster.g[0].now_s,
        control.quota,
        control.remembered_s,
        control.wish,
    )
    n_rows = control.features.shape[0] if clock.pool == ALL_POOLS else 1
    write_vector(
        control.rows,
        control.features,
        control.class_features,
        control.wish,
        scales,
        (clock.max_pools, clock.max_classes, clock.max_types),
        0 if clock.pool == ALL_POOLS else clock.pool,
        n_rows,
        cluster.g[0].now_s,
        clock.start_s,
        clock.global_s,
        out,
    )
    reward.collect(
        cluster,
        control.per_attained,
        control.per_gpu_s,
        control.per_replica,
        control.counted,
        control.terms,
    )
