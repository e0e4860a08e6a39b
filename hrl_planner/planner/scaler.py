"""The local planner of every pool, by rule or learned: one compiled function for both.

A learned scaler chooses per pool among eight actions. Action 0 does what the rule says, so an
untrained scaler is the rule; the others add replicas to the target or go to the quota at once.
The simulator's loop and the planner pods call `scale_pools`; `targets_of` turns actions into
replicas there and for agents that are being trained.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import compiled, lean
from hrl_planner.encoding import N_CLASS_COLUMNS, N_POOL_COLUMNS, TIME_COLUMNS, write_vector
from hrl_planner.features import (
    CLASS_FEATURES,
    POOL_FEATURES,
    FeatureScales,
    encode_classes,
    encode_pools,
)
from hrl_planner.limits import N_LIMIT_COLUMNS
from hrl_planner.observation import POOL_FIELDS
from hrl_planner.planner.network import NetShape, forward
from hrl_planner.planner.rule import RulePools, rule_targets

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CHANGES = (0, -2, -1, 0, 1, 2, 4, 0)
"""Replicas added by each action; action 0 is the rule's choice, the last goes to the quota."""
BY_RULE = 0
TO_QUOTA = len(CHANGES) - 1

_N_POOL, _N_CLASS = len(POOL_FEATURES), len(CLASS_FEATURES)
_TARGET = POOL_FIELDS.index("target_replicas")


@lean
def target_of(action: int, wish: int, target: int, quota: float, minimum: int, maximum: int) -> int:
    """Return the replicas an action asks for.

    Args:
        action: index into CHANGES.
        wish: replicas the rule asks for.
        target: replicas asked for so far.
        quota: most replicas.
        minimum: fewest replicas of the spec.
        maximum: most replicas of the spec.
    """
    if action == BY_RULE:
        return wish
    most = int(min(quota, float(maximum)))
    if action == TO_QUOTA:
        return max(minimum, most)
    # As the rule: who was given GPUs uses at least one replica.
    least = max(minimum, 1) if 1.0 <= quota < np.inf else minimum
    return max(min(max(target + CHANGES[action], least), most), 0)


@compiled
def scaler_input(
    rows: FloatArray,
    class_rows: FloatArray,
    wish: IntArray,
    scales: FeatureScales,
    now_s: float,
    start_s: float,
    global_s: float,
) -> NDArray[np.float32]:
    """Return the vector (`hrl_planner.encoding`) of all pools, of just the spec's size."""
    n_pools, n_classes, n_types = rows.shape[0], class_rows.shape[0], scales.type_budget.size
    features = np.empty((n_pools, _N_POOL), np.float32)
    class_features = np.empty((n_classes, _N_CLASS), np.float32)
    encode_pools(rows, scales, features)
    encode_classes(class_rows, scales, class_features)
    per_pool = N_POOL_COLUMNS + 1 + N_LIMIT_COLUMNS
    size = n_pools * per_pool + n_classes * N_CLASS_COLUMNS + n_types + len(TIME_COLUMNS)
    out = np.empty(size, np.float32)
    write_vector(
        rows, features, class_features, wish, scales, (n_pools, n_classes, n_types),
        0, n_pools, now_s, start_s, global_s, out,
    )  # fmt: skip
    return out


@compiled
def outputs_of(
    net: NDArray[np.float32],
    shape: NetShape,
    vector: NDArray[np.float32],
    n_pools: int,
    n_classes: int,
) -> NDArray[np.float32]:
    """Return a network's outputs for a vector of just the spec's size, shape (P, outputs)."""
    pools = vector[: n_pools * N_POOL_COLUMNS].reshape((n_pools, N_POOL_COLUMNS))
    at = n_pools * (N_POOL_COLUMNS + 1)
    end = at + n_classes * N_CLASS_COLUMNS
    classes = vector[at:end].reshape((n_classes, N_CLASS_COLUMNS))
    return forward(net, shape, pools, classes, vector[vector.size - 1])


@compiled
def scale_pools(
    rows: FloatArray,
    class_rows: FloatArray,
    pools: RulePools,
    parameters: FloatArray,
    scales: FeatureScales,
    now_s: float,
    start_s: float,
    global_s: float,
    quota: FloatArray,
    changed_s: FloatArray,
    net: NDArray[np.float32],
    shape: NetShape,
    targets: IntArray,
) -> None:
    """Write the replicas every pool should have.

    Args:
        rows: observation rows, quota included, shape (P, len(POOL_FIELDS)).
        class_rows: shape (C, len(CLASS_FIELDS)).
        pools: the fixed side of the rule.
        parameters: `RuleParameters.to_array()`.
        scales: of the features.
        now_s: time of the observation.
        start_s: time of day at time 0.
        global_s: the global interval.
        quota: most replicas per pool, shape (P,).
        changed_s: when each pool was last changed, shape (P,); updated.
        net: a packed scaler, or NO_NET for the rule.
        shape: its sizes.
        targets: written, shape (P,).
    """
    before_s = changed_s.copy()
    rule_targets(rows, pools, parameters, now_s, quota, changed_s, targets)
    if net.size == 0:
        return
    vector = scaler_input(rows, class_rows, targets, scales, now_s, start_s, global_s)
    scores = outputs_of(net, shape, vector, rows.shape[0], class_rows.shape[0])
    for i in range(rows.shape[0]):
        current = int(rows[i, _TARGET])
        targets[i] = target_of(
            int(np.argmax(scores[i])),
            int(targets[i]),
            current,
            quota[i],
            int(pools.minimum[i]),
            int(pools.maximum[i]),
        )
        changed_s[i] = now_s if targets[i] != current else before_s[i]
