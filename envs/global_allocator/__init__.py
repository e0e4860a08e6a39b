"""The global allocator: quotas of all pools."""

from envs.global_allocator.env import GlobalAllocatorEnv
from envs.global_allocator.headroom import HeadroomLevel
from envs.global_allocator.level import GlobalLevel
from envs.global_allocator.moves import MovesLevel

__all__ = ["GlobalAllocatorEnv", "GlobalLevel", "HeadroomLevel", "MovesLevel"]
