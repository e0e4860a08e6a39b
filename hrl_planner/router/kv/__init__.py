"""Which worker holds which prefix: prompts as block hashes, and the index over all workers."""

from hrl_planner.router.kv.feed import FeedState
from hrl_planner.router.kv.hashing import PromptBlocks, blocks_of_ids, blocks_of_text
from hrl_planner.router.kv.index import KvIndex, KvSizes

__all__ = ["FeedState", "KvIndex", "KvSizes", "PromptBlocks", "blocks_of_ids", "blocks_of_text"]
