"""The simulated cluster and its environments. Importing this package registers their ids.

    hrl_planner/GlobalAllocator-v0   quotas of all pools every global interval
    hrl_planner/LocalScaler-v0       replicas of one pool every local interval
    hrl_planner/Cluster-v0           replicas of all pools every local interval, no hierarchy

`envs.parallel` exposes both levels to PettingZoo, `envs.vec_env` batches to Stable-Baselines3.
Registration names modules and imports none of them: the simulator works without gymnasium.
"""

from __future__ import annotations

ENTRY_POINTS = {
    "hrl_planner/GlobalAllocator-v0": "envs.global_allocator.env:GlobalAllocatorEnv",
    "hrl_planner/LocalScaler-v0": "envs.local_scaler.env:LocalScalerEnv",
    "hrl_planner/Cluster-v0": "envs.cluster.env:ClusterEnv",
}


def register() -> None:
    """Tell Gymnasium the ids; again is harmless."""
    import gymnasium

    for name, entry_point in ENTRY_POINTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=entry_point)


try:
    register()
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
