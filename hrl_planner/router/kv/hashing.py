"""A prompt becomes the block hashes that the index is asked for.

Each hash names the content of one full block; which blocks came before it is the tree's business,
so equal prefixes have equal leading hashes. With token ids the hashes are those that the index
computes from the engines' events. Without a tokenizer the blocks are pieces of text: they meet
nothing but the router's own earlier decisions, and the token count is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamo.llm import compute_block_hash_for_seq

CHARS_PER_TOKEN = 4  # English text under current vocabularies; code and other scripts have fewer
_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class PromptBlocks:
    """What the decision knows of a prompt.

    Attributes:
        hashes: one 64-bit hash per full block, first block first.
        isl_tokens: input length; an estimate where the prompt was hashed as text.
        block_tokens: tokens per block, so `overlap * block_tokens` are cached tokens.
    """

    hashes: list[int]
    isl_tokens: int
    block_tokens: int


def blocks_of_ids(ids: list[int], block_tokens: int) -> PromptBlocks:
    """Blocks of a prompt whose token ids are known."""
    return PromptBlocks(compute_block_hash_for_seq(ids, block_tokens), len(ids), block_tokens)


def blocks_of_text(text: str, block_tokens: int, chunk_chars: int | None = None) -> PromptBlocks:
    """Blocks of a prompt of unknown tokens: pieces of `chunk_chars`, `block_tokens` tokens each.

    The hash is Python's own: keyed anew in each process, so no client can aim at a collision, and
    no two routers agree on it.
    """
    chunk = chunk_chars or block_tokens * CHARS_PER_TOKEN
    hashes = [
        hash(text[start : start + chunk]) & _MASK_64
        for start in range(0, len(text) - chunk + 1, chunk)
    ]
    return PromptBlocks(hashes, -(-len(text) * block_tokens // chunk), block_tokens)
