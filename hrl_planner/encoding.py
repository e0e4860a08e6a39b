"""What a learned policy is shown: one flat float32 vector, and how to take it apart.

    pools     max_pools x POOL_COLUMNS, in the spec's order, padded with zeros
    mask      max_pools, 1 where there is a pool
    classes   max_classes x CLASS_COLUMNS, padded with zeros (a class there is has an ITL target)
    free      max_types, share of each GPU type's budget that no replica holds; padding is 0
    limits    max_pools x LIMIT_COLUMNS, what bounds a pool's replicas, exactly: no feature, no
              network reads it, see `hrl_planner.limits`; padding allows 0 replicas
    time      sine and cosine of the time of day, position in the global interval

The features are those of `hrl_planner.features`. Three columns tell what a planner without learning
makes of the moment: `plan`, what it asks for as a share of the pool's maximum, the point an
allocator's action is relative to (for a local scaler: what the rule asks for); `plan_marginal`,
what it says one more GPU is worth there; `planned`, the rate it planned a class for. The simulator
writes this vector in compiled code, production with `encode_vector`: the same functions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import lean
from hrl_planner.errors import SpecError
from hrl_planner.features import CLASS_FEATURES, POOL_FEATURES, FeatureScales
from hrl_planner.limits import N_LIMIT_COLUMNS
from hrl_planner.observation import POOL_FIELDS

if TYPE_CHECKING:
    from hrl_planner.planner.policy import Plan
    from hrl_planner.spec import ClusterSpec

Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]

PLAN_COLUMNS = ("plan", "plan_marginal")
POOL_COLUMNS = (*POOL_FEATURES, *PLAN_COLUMNS)
CLASS_COLUMNS = (*CLASS_FEATURES, "planned")
TIME_COLUMNS = ("day_sin", "day_cos", "phase")
LIMIT = 5.0  # features stay within this, see hrl_planner.features
DAY_S = 86_400.0

N_POOL_COLUMNS, N_CLASS_COLUMNS = len(POOL_COLUMNS), len(CLASS_COLUMNS)
_N_POOL, _N_CLASS = len(POOL_FEATURES), len(CLASS_FEATURES)
PLAN = _N_POOL
"""The column that shows the plan."""
_MARGINAL, _PLANNED = _N_POOL + 1, _N_CLASS
_HELD = tuple(POOL_FIELDS.index(name) for name in ("ready", "starting", "draining"))


def schema_hash() -> str:
    """Return a hash of every column's name and place: what a checkpoint was trained to read."""
    text = "|".join((*POOL_COLUMNS, "/", *CLASS_COLUMNS, "/", *TIME_COLUMNS))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Layout:
    """Sizes of an observation; a policy reads any spec that fits the layout.

    Attributes:
        max_pools: rows of pools.
        max_classes: rows of SLO classes.
        max_types: GPU types.
    """

    max_pools: int
    max_classes: int
    max_types: int

    @classmethod
    def of(cls, spec: ClusterSpec) -> Layout:
        """Return the layout that just fits a spec."""
        return cls(len(spec.pools), len(spec.slo_classes), len(spec.gpu_types))

    @property
    def slices(self) -> dict[str, slice]:
        """Where each part lies in the vector."""
        sizes = {
            "pools": self.max_pools * N_POOL_COLUMNS,
            "mask": self.max_pools,
            "classes": self.max_classes * N_CLASS_COLUMNS,
            "free": self.max_types,
            "limits": self.max_pools * N_LIMIT_COLUMNS,
            "time": len(TIME_COLUMNS),
        }
        ends = np.cumsum(list(sizes.values()))
        return {
            name: slice(int(end) - size, int(end))
            for (name, size), end in zip(sizes.items(), ends, strict=True)
        }

    @property
    def size(self) -> int:
        """Length of the vector."""
        return int(self.slices["time"].stop)

    def split(self, observation: Float32Array) -> dict[str, Float32Array]:
        """Return the parts of one observation or of a batch by name, as views in their shapes.

        Whatever stands behind the vector (`envs.future`) is left out.
        """
        lead = observation.shape[:-1]
        parts = {name: observation[..., where] for name, where in self.slices.items()}
        parts["pools"] = parts["pools"].reshape(*lead, self.max_pools, N_POOL_COLUMNS)
        parts["classes"] = parts["classes"].reshape(*lead, self.max_classes, N_CLASS_COLUMNS)
        parts["limits"] = parts["limits"].reshape(*lead, self.max_pools, N_LIMIT_COLUMNS)
        return parts

    def check(self, spec: ClusterSpec, one_pool: bool = False) -> None:
        """Refuse a spec that does not fit.

        Raises:
            SpecError: naming what there is too much of.
        """
        have = {
            "pools": 1 if one_pool else len(spec.pools),
            "slo_classes": len(spec.slo_classes),
            "GPU types": len(spec.gpu_types),
        }
        limits = (self.max_pools, self.max_classes, self.max_types)
        for (what, count), limit in zip(have.items(), limits, strict=True):
            if count > limit:
                raise SpecError(
                    f"spec {spec.name}: {count} {what} do not fit the observation of this "
                    f"environment, which holds {limit}; make it with a larger layout"
                )


@lean
def bounded(value: float) -> float:
    """Return a value within the limits of a feature."""
    return max(-LIMIT, min(LIMIT, value))


@lean
def write_vector(
    rows: FloatArray,
    features: Float32Array,
    class_features: Float32Array,
    wish: NDArray[np.int64],
    scales: FeatureScales,
    sizes: tuple[int, int, int],
    first: int,
    n_rows: int,
    now_s: float,
    start_s: float,
    global_s: float,
    out: Float32Array,
) -> None:
    """Lay out an observation as `Layout` says; the plan's columns show the rule's wish.

    Args:
        rows: observation rows, shape (P, len(POOL_FIELDS)).
        features: of all pools, shape (P, len(POOL_FEATURES)).
        class_features: shape (C, len(CLASS_FEATURES)).
        wish: replicas the rule asks for, shape (P,).
        scales: of the spec.
        sizes: rows of pools and classes, and GPU types.
        first: the first pool that is shown.
        n_rows: how many are.
        now_s: time of the observation.
        start_s: time of day at time 0.
        global_s: the global interval.
        out: written, shape (Layout.size,).
    """
    out[:] = 0.0
    mask_at = sizes[0] * N_POOL_COLUMNS
    for row in range(n_rows):
        i = first + row
        for k in range(_N_POOL):
            out[row * N_POOL_COLUMNS + k] = bounded(features[i, k])
        out[row * N_POOL_COLUMNS + PLAN] = wish[i] / max(scales.max_replicas[i], 1.0)
        out[mask_at + row] = 1.0
    at = mask_at + sizes[0]
    for c in range(class_features.shape[0]):
        for k in range(_N_CLASS):
            out[at + c * N_CLASS_COLUMNS + k] = bounded(class_features[c, k])
    at += sizes[1] * N_CLASS_COLUMNS
    for kind in range(scales.type_budget.size):
        out[at + kind] = 1.0 if scales.type_budget[kind] > 0.0 else 0.0
    for i in range(rows.shape[0]):
        kind = scales.type_index[i]
        for k in _HELD:
            if rows[i, k] == rows[i, k]:
                out[at + kind] -= rows[i, k] * scales.gpus[i] / max(scales.type_budget[kind], 1.0)
    for kind in range(scales.type_budget.size):
        out[at + kind] = bounded(out[at + kind])
    at += sizes[2]
    for row in range(n_rows):
        for k in range(N_LIMIT_COLUMNS):
            out[at + row * N_LIMIT_COLUMNS + k] = scales.limits[first + row, k]
    at += sizes[0] * N_LIMIT_COLUMNS
    angle = 2.0 * np.pi * (start_s + now_s) / DAY_S
    out[at] = np.sin(angle)
    out[at + 1] = np.cos(angle)
    out[at + 2] = (now_s % global_s) / global_s


def write_plan(out: Float32Array, layout: Layout, plan: Plan, scales: FeatureScales) -> None:
    """Write what a planner without learning makes of the moment over the rule's wish.

    Args:
        out: an observation, changed.
        layout: its layout.
        plan: the planner's answer.
        scales: of the spec.
    """
    n_pools = plan.replicas.size
    pools = out[: n_pools * N_POOL_COLUMNS].reshape(n_pools, N_POOL_COLUMNS)
    pools[:, PLAN] = plan.replicas / np.maximum(scales.max_replicas, 1.0)
    if plan.advice is None:
        return
    worth = plan.advice.marginal * scales.type_budget[scales.type_index]
    pools[:, _MARGINAL] = np.minimum(np.log1p(worth), LIMIT)
    planned = np.minimum(np.log1p(np.nan_to_num(plan.advice.planned_rps)), LIMIT)
    at = layout.slices["classes"].start + _PLANNED
    out[at : at + planned.size * N_CLASS_COLUMNS : N_CLASS_COLUMNS] = planned
