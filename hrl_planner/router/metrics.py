"""The router's Prometheus metrics, all named `hrl_router_*`, in a registry of their own.

Label children are made once: a lookup by label values on every request would cost more than the
decision it counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hrl_planner.router.fleet import Place
from hrl_planner.router.request import Refusal

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 60.0)
_ITL_SECONDS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.3)
_DECISION_SECONDS = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 5e-3, 2e-2, 0.1)
_RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


_OF_CLASS = {
    "offered": "Requests offered.",
    "resolved": "Offered requests that are over, however they ended.",
    "prompt_tokens": "Prompt tokens of offered requests.",
    "prompt_tokens_squared": "Squares of their numbers, added up.",
    "placed_tokens": "Prompt tokens of requests given to a worker that computes the prompt.",
    "cached_tokens": "Those of them that this worker was thought to have cached.",
    "answers": "Answers that were given whole.",
    "answer_tokens": "Tokens of these answers, estimated.",
    "answer_tokens_squared": "Squares of their numbers, added up.",
}

L = TypeVar("L", Counter, Histogram, Gauge)


class _Children(Generic[L]):
    """The children of one labelled metric, kept by their label values."""

    def __init__(self, metric: L) -> None:
        self._metric: L = metric
        self._children: dict[tuple[str, ...], L] = {}

    def __call__(self, *labels: str) -> L:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._metric.labels(*labels)
        return child


class RouterMetrics:
    """What is counted.

    Args:
        classes: names of the SLO classes, by index.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self.registry = r = CollectorRegistry()
        self._decisions = _counter(
            r, "decisions", "Places given, by pool, class and reason.", "pool", "class", "reason"
        )
        self._refusals = _counter(r, "refusals", "Requests refused.", "status", "reason")
        self._queued = _counter(r, "queued", "Requests that had to wait for a place.", "class")
        self._prefill_errors = _counter(
            r, "prefill_failures", "Prompts that a prefill worker failed.", "pool"
        )
        self._slo = _counter(r, "slo", "Routed requests by how they ended.", "class", "outcome")
        # What planners read: of every class the requests that were ever known and what became of
        # them, with the sums that mean and deviation of their lengths take.
        self._classes_seen = {
            name: _counter(r, f"class_{name}", text, "class") for name, text in _OF_CLASS.items()
        }
        for of_class in self._classes_seen.values():
            for name in classes:
                of_class(name)  # a class without traffic is 0, not unknown
        self._retries = _counter(r, "retried", "Answers that took a second worker.", "pool")
        self._decision_s = Histogram(
            "hrl_router_decision_seconds",
            "From a request's arrival to its choice, waiting excluded.",
            buckets=_DECISION_SECONDS,
            registry=r,
        )
        self._ttft = _histogram(
            r, "ttft_seconds", "Observed time to first token.", _SECONDS, "pool", "class"
        )
        self._itl = _histogram(
            r, "itl_seconds", "Observed mean time between tokens.", _ITL_SECONDS, "pool", "class"
        )
        self._ttft_ratio = _histogram(
            r, "ttft_observed_over_predicted", "1 is a perfect prediction.", _RATIOS, "pool"
        )
        self._itl_ratio = _histogram(
            r, "itl_observed_over_predicted", "1 is a perfect prediction.", _RATIOS, "pool"
        )
        self._overlap = _histogram(
            r, "overlap_ratio", "Share of the prompt in the chosen worker's cache.", _SHARES, "pool"
        )
        self._prefill_s = _histogram(
            r, "prefill_call_seconds", "Time of a call to a prefill worker.", _SECONDS, "pool"
        )
        self._workers = _Children(
            Gauge("hrl_router_workers", "Workers by state.", ("pool", "state"), registry=r)
        )
        self._kv_states = _Children(
            Gauge("hrl_router_kv_index_workers", "Workers by index state.", ("state",), registry=r)
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when somebody scrapes."""
        Gauge(f"hrl_router_{name}", text, registry=self.registry).set_function(read)

    def page(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)

    def decided(self, seconds: float) -> None:
        """Count a decision's time."""
        self._decision_s.observe(seconds)

    def chosen(self, place: Place, class_id: int, reason: str) -> None:
        """Count a place that was given."""
        self._decisions(place.worker.pool, self._classes[class_id], reason).inc()

    def overlap(self, place: Place, class_id: int, cached_tokens: int, isl_tokens: int) -> None:
        """Count how much of a prompt is cached where it is computed."""
        self._overlap(place.worker.pool).observe(cached_tokens / isl_tokens)
        self._count(class_id, "placed_tokens", isl_tokens)
        self._count(class_id, "cached_tokens", cached_tokens)

    def offered(self, class_id: int, isl_tokens: int) -> None:
        """Count a request, whatever will become of it."""
        self._count(class_id, "offered", 1)
        self._count(class_id, "prompt_tokens", isl_tokens)
        self._count(class_id, "prompt_tokens_squared", isl_tokens**2)

    def resolved(self, class_id: int) -> None:
        """Count that an offered request is over."""
        self._count(class_id, "resolved", 1)

    def answered(self, class_id: int, osl_tokens: int) -> None:
        """Count an answer that was given whole."""
        self._count(class_id, "answers", 1)
        self._count(class_id, "answer_tokens", osl_tokens)
        self._count(class_id, "answer_tokens_squared", osl_tokens**2)

    def _count(self, class_id: int, name: str, amount: float) -> None:
        self._classes_seen[name](self._classes[class_id]).inc(amount)

    def queued(self, class_id: int) -> None:
        """Count a request that waits."""
        self._queued(self._classes[class_id]).inc()

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal."""
        self._refusals(str(refusal.status), refusal.reason).inc()

    def prefilled(self, place: Place, seconds: float) -> None:
        """Count a call to a prefill worker."""
        self._prefill_s(place.worker.pool).observe(seconds)

    def prefill_failed(self, place: Place) -> None:
        """Count a prefill worker's failure."""
        self._prefill_errors(place.worker.pool).inc()

    def retried(self, pool: str) -> None:
        """Count an answer that came from the fallback."""
        self._retries(pool).inc()

    def outcome(self, class_id: int, outcome: str) -> None:
        """Count how a routed request ended: the words of `outcome`, see docs/router.md."""
        self._slo(self._classes[class_id], outcome).inc()

    def observed_ttft(self, pool: str, class_id: int, seconds: float, predicted_s: float) -> None:
        """Count a time to first token, and how well it was foreseen."""
        self._ttft(pool, self._classes[class_id]).observe(seconds)
        self._ttft_ratio(pool).observe(seconds / max(predicted_s, 1e-4))

    def observed_itl(self, pool: str, class_id: int, seconds: float, predicted_s: float) -> None:
        """Count a mean time between tokens, and how well it was foreseen."""
        self._itl(pool, self._classes[class_id]).observe(seconds)
        self._itl_ratio(pool).observe(seconds / max(predicted_s, 1e-5))

    def workers(self, counts: dict[tuple[str, str], int]) -> None:
        """Set the number of workers by pool and state."""
        for (pool, state), count in counts.items():
            self._workers(pool, state).set(count)

    def kv_states(self, counts: dict[str, int]) -> None:
        """Set the number of workers by state of their index."""
        for state, count in counts.items():
            self._kv_states(state).set(count)


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> _Children[Counter]:
    return _Children(Counter(f"hrl_router_{name}", text, labels, registry=registry))


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...], *labels: str
) -> _Children[Histogram]:
    name = f"hrl_router_{name}"
    return _Children(Histogram(name, text, labels, buckets=buckets, registry=registry))
