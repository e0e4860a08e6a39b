"""Step times of a worker, read from its profile by textbook interpolation.

Written without `hrl_planner.surface` on purpose: both read the same tables, so an error in the
packed lookups shows as a disagreement between the kernel and the reference.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from hrl_planner.profile import WorkerProfile


def cell(axis: Sequence[float], x: float) -> tuple[int, int, float]:
    """Return the two neighbours of x on an axis and the weight of the upper one, clamped."""
    if x <= axis[0]:
        return 0, 0, 0.0
    if x >= axis[-1]:
        return len(axis) - 1, len(axis) - 1, 0.0
    upper = bisect_right(axis, x)
    lower = upper - 1
    return lower, upper, (x - axis[lower]) / (axis[upper] - axis[lower])


class StepTimes:
    """How long one prefill step and one decode iteration of a pool's workers take, in seconds."""

    def __init__(self, profile: WorkerProfile, scale: float) -> None:
        """Copy the grids into lists; `scale` multiplies every time."""
        self.batches = profile.prefill_batch.tolist()
        self.new_tokens = profile.prefill_new_tokens.tolist()
        self.prefixes = profile.prefill_prefix_tokens.tolist()
        self.prefill_ms = profile.prefill_ms.tolist()
        self.decode_batches = profile.decode_batch.tolist()
        self.contexts = profile.decode_context_tokens.tolist()
        self.decode_ms = profile.decode_ms.tolist()
        self.scale = scale

    def prefill_s(self, requests: int, total_tokens: int, mean_prefix: float) -> float:
        """Return the time of a step over `requests` requests with `total_tokens` new tokens."""
        batch = min(float(requests), self.batches[-1])
        tokens = total_tokens / batch
        # Longer than the grid: in proportion to the longest point.
        stretch = max(1.0, tokens / self.new_tokens[-1])
        milliseconds = 0.0
        b0, b1, u = cell(self.batches, batch)
        s0, s1, v = cell(self.new_tokens, tokens)
        p0, p1, w = cell(self.prefixes, mean_prefix)
        for b, weight_b in ((b0, 1.0 - u), (b1, u)):
            for s, weight_s in ((s0, 1.0 - v), (s1, v)):
                for p, weight_p in ((p0, 1.0 - w), (p1, w)):
                    milliseconds += weight_b * weight_s * weight_p * self.prefill_ms[b][s][p]
        return milliseconds * stretch * 1e-3 * self.scale

    def decode_s(self, batch: int, mean_context: float) -> float:
        """Return the time of an iteration of `batch` requests with this mean context."""
        milliseconds = 0.0
        b0, b1, u = cell(self.decode_batches, float(batch))
        c0, c1, v = cell(self.contexts, mean_context)
        for b, weight_b in ((b0, 1.0 - u), (b1, u)):
            for c, weight_c in ((c0, 1.0 - v), (c1, v)):
                milliseconds += weight_b * weight_c * self.decode_ms[b][c]
        return milliseconds * 1e-3 * self.scale
