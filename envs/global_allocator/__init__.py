"""The global allocator: quotas of all pools."""

from envs.global_allocator.env import GlobalAllocatorEnv
from envs.global_allocator.level import GlobalLevel
from envs.global_allocator.moves import MovesLevel
from envs.global_allocator.terms import TermsLevel

__all__ = ["GlobalAllocatorEnv", "GlobalLevel", "MovesLevel", "TermsLevel"]
