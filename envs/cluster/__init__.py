"""The flat agent: replicas of all pools."""

from envs.cluster.env import ClusterEnv
from envs.cluster.level import FlatLevel

__all__ = ["ClusterEnv", "FlatLevel"]
