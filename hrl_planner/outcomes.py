"""What came of requests, in the numbers everything is judged by, simulated or measured.

Every share is over *offered* requests: one that was rejected, failed, came late or never finished
misses, and in the percentiles it counts as infinitely slow. Percentiles over finished requests only
would reward whoever starves the rest. `agents.evaluate.metrics` computes these numbers from a
simulation and `hrl_planner.load` from a run against real servers, so that the two can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

QUANTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """N offered requests.

    Attributes:
        ttft_ms: (N,), NaN where no token came.
        itl_ms: (N,), mean inter-token latency; NaN where the request did not finish, however fast
            its tokens came so far.
        ttft_target_ms: (N,).
        itl_target_ms: (N,).
        attained: (N,), finished within both targets.
    """

    ttft_ms: FloatArray
    itl_ms: FloatArray
    ttft_target_ms: FloatArray
    itl_target_ms: FloatArray
    attained: NDArray[np.bool_]

    def of(self, members: NDArray[np.bool_]) -> Outcomes:
        """The requests of a mask."""
        return Outcomes(
            self.ttft_ms[members],
            self.itl_ms[members],
            self.ttft_target_ms[members],
            self.itl_target_ms[members],
            self.attained[members],
        )


def request_metrics(outcomes: Outcomes, duration_s: float) -> dict[str, float]:
    """Counts, shares, goodput and percentiles; rates are per second of `duration_s`."""
    offered = outcomes.attained.size
    attained = int(outcomes.attained.sum())
    row = {
        "offered": float(offered),
        "attained": float(attained),
        "attainment": ratio(attained, offered),
        # Comparisons with NaN are False: what never happened is a miss.
        "ttft_attainment": ratio((outcomes.ttft_ms <= outcomes.ttft_target_ms).sum(), offered),
        "itl_attainment": ratio((outcomes.itl_ms <= outcomes.itl_target_ms).sum(), offered),
        "goodput_rps": ratio(attained, duration_s),
    }
    for name, values in (("ttft", outcomes.ttft_ms), ("itl", outcomes.itl_ms)):
        for q in QUANTILES:
            row[f"{name}_p{q}_ms"] = percentile(values, q / 100)
    return row


def ratio(part: float, whole: float) -> float:
    """A share of a whole; NaN where there is no whole."""
    return float(part / whole) if whole else float("nan")


def percentile(values: FloatArray, q: float) -> float:
    """Percentile in which NaN (never happened) counts as infinitely late."""
    if values.size == 0:
        return float("nan")
    # An existing value is picked: interpolating towards infinity would give NaN.
    return float(np.quantile(np.where(np.isnan(values), np.inf, values), q, method="inverted_cdf"))
