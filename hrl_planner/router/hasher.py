"""From the prompt of a request to the block hashes and the length that a decision needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hrl_planner.prompt import (
    PromptTokenizer,
    Tokenizer,
    WordTokenizer,
    given_ids,
    is_chat,
    prompt_ids_async,
    prompt_text,
)
from hrl_planner.router.config import TokenizerConfig
from hrl_planner.router.kv import PromptBlocks, blocks_of_ids, blocks_of_text


class PromptHasher:
    """Hashes prompts by token ids where it can have them, else by pieces of their text."""

    def __init__(self, config: TokenizerConfig, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._tokenizer: PromptTokenizer | None = None
        if config.kind == "words":
            self._tokenizer = WordTokenizer()
        elif config.path is not None:
            self._tokenizer = Tokenizer.load(Path(config.path))

    async def blocks(self, prompt: dict[str, Any]) -> PromptBlocks:
        """Return a prompt's blocks; long text is tokenised in a thread.

        Args:
            prompt: `prompt`, or `messages` and `tools`, as in the body.

        Raises:
            ValueError: the prompt is malformed; the text can be shown to the client.
        """
        value = prompt.get("prompt")
        if type(value) is list and value and type(value[0]) is int:
            return self._of_ids(value)
        ids = None if is_chat(prompt) else given_ids(prompt)
        if ids is None and self._tokenizer is not None:
            ids = await prompt_ids_async(self._tokenizer, prompt)
        if ids is None:
            return blocks_of_text(prompt_text(prompt), self._block_tokens)
        return blocks_of_ids(ids, self._block_tokens)

    def _of_ids(self, ids: list[int]) -> PromptBlocks:
        """Hash ids as they came; the hash itself finds out what is no id, which is the fastest."""
        try:
            return blocks_of_ids(ids, self._block_tokens)
        except (TypeError, OverflowError):
            raise ValueError("prompt holds something that is no token id") from None
