from __future__ import annotations

import math

from hrl_planner.router.progress import Progress
from hrl_planner.router.scrape import WorkerMetrics


def page(at_s: float, running: float, tokens: float) -> WorkerMetrics:
    return WorkerMetrics(running, 0.0, 0.5, 100.0, tokens, at_s)


def test_a_worker_stalls_when_requests_run_and_no_token_comes_for_too_long():
    progress = Progress(10.0)
    assert not progress.stalled("w", page(0.0, 3, 50))
    assert not progress.stalled("w", page(9.0, 3, 50))
    assert progress.stalled("w", page(10.5, 3, 50))
    assert not progress.stalled("w", page(11.0, 3, 51))


def test_an_idle_worker_never_stalls():
    progress = Progress(10.0)
    for second in range(100):
        assert not progress.stalled("w", page(float(second), 0, 50))
    # A request that begins after a long idle time gets the whole patience.
    assert not progress.stalled("w", page(100.0, 1, 50))
    assert not progress.stalled("w", page(105.0, 1, 50))


def test_an_engine_that_counts_no_tokens_is_not_judged():
    progress = Progress(10.0)
    assert not progress.stalled("w", page(0.0, 1, math.nan))
    assert not progress.stalled("w", page(100.0, 1, math.nan))
