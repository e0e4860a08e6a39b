"""The observation every environment gives: one flat float32 vector, and how to take it apart.

    pools     max_pools x (POOL_FEATURES + "plan"), in the spec's order, padded with zeros
    mask      max_pools, 1 where there is a pool
    classes   max_classes x CLASS_FEATURES, padded with zeros (a class there is has a TTFT target)
    free      max_types, share of each GPU type's budget that no replica holds; padding is 0
    time      sine and cosine of the time of day, position in the global interval

The features are those of `hrl_planner.features`, the function that production calls. `plan` is
what the planner without learning asks for now, as a share of the pool's maximum: the point an
action of the global allocator is relative to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hrl_planner.errors import SpecError
from hrl_planner.features import CLASS_FEATURES, POOL_FEATURES
from hrl_planner.spec import ClusterSpec

POOL_COLUMNS = (*POOL_FEATURES, "plan")
TIME_COLUMNS = ("day_sin", "day_cos", "phase")
LIMIT = 5.0  # features stay within this, see hrl_planner.features
DAY_S = 86_400.0


@dataclass(frozen=True)
class Layout:
    """Sizes of an observation; a policy trained with one layout reads any spec that fits it.

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
            "pools": self.max_pools * len(POOL_COLUMNS),
            "mask": self.max_pools,
            "classes": self.max_classes * len(CLASS_FEATURES),
            "free": self.max_types,
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

    def space(self) -> spaces.Box:
        """Return the observation space."""
        return spaces.Box(-LIMIT, LIMIT, (self.size,), np.float32)

    def split(self, observation: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the parts of one observation or of a batch by name, as views in their shapes."""
        lead = observation.shape[:-1]
        parts = {name: observation[..., where] for name, where in self.slices.items()}
        parts["pools"] = parts["pools"].reshape(*lead, self.max_pools, len(POOL_COLUMNS))
        parts["classes"] = parts["classes"].reshape(*lead, self.max_classes, len(CLASS_FEATURES))
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
