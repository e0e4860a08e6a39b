"""The local scaler: replicas of one pool."""

from envs.local_scaler.env import LocalScalerEnv
from envs.local_scaler.level import LocalLevel

__all__ = ["LocalLevel", "LocalScalerEnv"]
