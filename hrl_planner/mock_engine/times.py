"""Step times of a mock engine: the lookups that simulator, planners and router use."""

from __future__ import annotations

from hrl_planner import surface
from hrl_planner.profile import WorkerProfile


class ProfileTimes:
    """How long steps of a profile's worker take, in seconds.

    Args:
        profile: the worker.
        max_num_seqs: decode rows are made for batches up to this.
        scale: multiplies every time.

    Attributes:
        slowdown: multiplies every time as well, and may change while the engine runs.
    """

    def __init__(self, profile: WorkerProfile, max_num_seqs: int, scale: float = 1.0) -> None:
        """Pack the profile and look both surfaces up once, which compiles them."""
        packed = surface.pack(profile, max_num_seqs, scale)
        self._record = packed.record[0]
        self._table = packed.table
        self.slowdown = 1.0
        self.prefill_s(1, 1, 0.0)
        self.decode_s(1, 1.0)

    def prefill_s(self, requests: int, total_tokens: int, mean_prefix: float) -> float:
        """Return the time of a step over `requests` prompts with `total_tokens` new tokens."""
        seconds = surface.prefill_step_s(
            self._record, self._table, float(requests), float(total_tokens), mean_prefix
        )
        return self.slowdown * float(seconds)

    def decode_s(self, batch: int, mean_context: float) -> float:
        """Return the time of an iteration of `batch` requests with this mean context."""
        seconds = surface.decode_step_s(self._record, self._table, batch, mean_context)
        return self.slowdown * float(seconds)
