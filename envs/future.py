"""What will arrive: for a critic during training, never for an agent.

The value of a state depends on the requests to come, which no action changes. A critic that sees
them explains away their luck, and the policy's gradient keeps its expectation (input-dependent
baselines, Mao et al., ICLR 2019). These numbers stand behind the observation (`Layout.size`); an
actor reads only what is before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.episodes import Episode
from hrl_planner.encoding import LIMIT

HORIZONS_S = (60.0, 120.0, 240.0, 480.0)
_BIN_S = 10.0
_MEASURES = 3  # requests, prompt tokens and output tokens per second
_SCALE = np.array([1.0, 10.0, 10.0])


def future_size(max_classes: int) -> int:
    """Return how many numbers there are for so many classes."""
    return max_classes * len(HORIZONS_S) * _MEASURES


class FutureArrivals:
    """Arrivals of one episode, counted so that any window of them is two look-ups.

    Args:
        episode: whose requests.
    """

    def __init__(self, episode: Episode) -> None:
        """See the class."""
        trace, n_classes = episode.trace, len(episode.spec.slo_classes)
        n_bins = int(trace.duration_s // _BIN_S) + 1
        bins = np.minimum((trace.arrival_s // _BIN_S).astype(np.int64), n_bins - 1)
        at = bins * n_classes + episode.class_id
        columns = (None, trace.isl_tokens, trace.osl_tokens)
        counted = [
            np.bincount(at, column, n_bins * n_classes).reshape(n_bins, n_classes)
            for column in columns
        ]
        self._total = np.zeros((n_bins + 1, n_classes, _MEASURES))
        np.cumsum(np.stack(counted, axis=-1), axis=0, out=self._total[1:])

    def features(self, now_s: float, max_classes: int) -> NDArray[np.float32]:
        """Return log rates over every horizon, shape (future_size(max_classes),)."""
        last = len(self._total) - 1
        first = min(int(now_s // _BIN_S), last)
        n_classes = self._total.shape[1]
        out = np.zeros((max_classes, len(HORIZONS_S), _MEASURES), np.float32)
        for k, horizon_s in enumerate(HORIZONS_S):
            end = min(first + int(horizon_s // _BIN_S), last)
            rates = (self._total[end] - self._total[first]) / horizon_s
            out[:n_classes, k] = np.minimum(np.log1p(rates) / _SCALE, LIMIT)
        return out.ravel()
