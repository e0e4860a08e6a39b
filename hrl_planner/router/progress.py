"""Which workers have requests and get nowhere with them: engines that hang answer HTTP as before.

A worker whose counters of computed and generated tokens stand still while requests run is stalled.
Counters stand still during a long prompt too, so the patience must be longer than the longest one.
"""

from __future__ import annotations

from hrl_planner.router.scrape import WorkerMetrics


class Progress:
    """The last time each worker got on.

    Args:
        patience_s: how long a worker may stand still.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._last: dict[str, tuple[float, float]] = {}

    def stalled(self, name: str, found: WorkerMetrics) -> bool:
        """Take a worker's metrics; tell whether it has stood still for too long."""
        tokens = found.prompt_tokens_total + found.generation_tokens_total
        known = self._last.get(name)
        if known is None or known[0] != tokens or not found.running > 0:
            self._last[name] = (tokens, found.at_s)
            return False
        return found.at_s - known[1] > self._patience_s

    def forget(self, name: str) -> None:
        """Drop a worker that is gone."""
        self._last.pop(name, None)
