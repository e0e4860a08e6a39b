"""How long answers are: what the router expects before, and works out after, without reading them.

Tokens stream past the router, so it counts bytes: Envoy tells how many an answer had, the workers'
metrics how many tokens they generated, and the ratio of the two turns one into the other.
"""

from __future__ import annotations

import numpy as np

# Before anything is known: tokens of an answer, and bytes of one streamed chunk in OpenAI's format.
_FIRST_GUESS_TOKENS = 256.0
_FIRST_GUESS_BYTES = 220.0
_SMOOTHING = 0.02
# Tokens seen before the measured ratio counts.
_ENOUGH_TOKENS = 500.0


class OutputLengths:
    """Mean output length per class, and bytes per streamed token."""

    def __init__(self, n_classes: int) -> None:
        self._mean = np.full(n_classes, _FIRST_GUESS_TOKENS)
        self._known = np.zeros(n_classes, np.bool_)
        self._bytes = 0.0
        self._tokens = 0.0
        self._generated: dict[str, float] = {}

    @property
    def bytes_per_token(self) -> float:
        """Bytes of one streamed token."""
        if self._tokens < _ENOUGH_TOKENS:
            return _FIRST_GUESS_BYTES
        return max(1.0, self._bytes / self._tokens)

    def expected(self, class_id: int, max_tokens: int | None) -> int:
        """Return the output tokens to reserve for."""
        mean = float(self._mean[class_id])
        if max_tokens is None:
            return round(mean)
        # A limit far above what such answers take says nothing; one near it, or unknown, does.
        tokens = max_tokens if not self._known[class_id] else min(max_tokens, round(2.0 * mean))
        return max(1, tokens)

    def of_answer(self, body_bytes: int, max_tokens: int | None) -> int:
        """Return the tokens of a streamed answer, estimated by its bytes."""
        tokens = round(body_bytes / self.bytes_per_token)
        return max(1, tokens if max_tokens is None else min(tokens, max_tokens))

    def saw_answer(self, class_id: int, body_bytes: int, tokens: int) -> None:
        """Learn from a streamed answer that ended well."""
        self._bytes += body_bytes
        weight = _SMOOTHING if self._known[class_id] else 1.0
        self._mean[class_id] += weight * (tokens - self._mean[class_id])
        self._known[class_id] = True

    def saw_whole_answer(self, class_id: int) -> None:
        """Note an answer that was not streamed: its tokens are in the workers' counters too."""
        self._tokens = max(0.0, self._tokens - float(self._mean[class_id]))

    def saw_generated(self, worker: str, total: float) -> None:
        """Learn from a worker's counter of generated tokens."""
        before = self._generated.get(worker)
        self._generated[worker] = total
        if before is not None and total > before:
            self._tokens += total - before

    def forget(self, worker: str) -> None:
        """Drop a worker that is gone."""
        self._generated.pop(worker, None)
