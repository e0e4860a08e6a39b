"""What a run is judged by: one row of numbers for the whole run and one per SLO class.

Every share is over *offered* requests: a request that was rejected, came late or never finished
misses, and in the latency percentiles it counts as infinitely slow. Percentiles over finished
requests only would reward a planner for starving the rest.

Rows are plain dicts (column name to number) because they go straight into a table; `METRICS`
says for people and for the report what each column means and which direction is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hrl_planner.outcomes import FloatArray, Outcomes, ratio, request_metrics

if TYPE_CHECKING:
    from envs.simulation import SimResult

Row = dict[str, float | str]

ALL_CLASSES = "all"
STATUS_FINISHED = 1
STATUS_REJECTED = 2

REVERSAL_WINDOW_S = 600.0
RECOVERY_WINDOW_S = 60.0
RECOVERED_ATTAINMENT = 0.9


@dataclass(frozen=True, slots=True)
class Metric:
    """How a column is shown.

    Attributes:
        name: column name.
        label: short heading.
        unit: "" for plain numbers, "%" for shares stored as 0 to 1.
        better: +1 higher is better, -1 lower is better, 0 neither.
        digits: decimals shown (after turning a share into percent).
        per_class: whether the column also exists per SLO class.
        help: one sentence for the report.
    """

    name: str
    label: str
    unit: str
    better: int
    digits: int
    per_class: bool
    help: str

    def number(self, value: float) -> str:
        """The value as text without its unit; a dash for what is not known."""
        if np.isnan(value):
            return "-"
        if np.isinf(value):
            return "never"
        shown = 100 * value if self.unit == "%" else value
        text = f"{shown:,.{self.digits}f}"
        return f"${text}" if self.unit == "$" else text

    def format(self, value: float) -> str:
        """The value as text with its unit."""
        text = self.number(value)
        bare = self.unit in ("", "$") or not np.isfinite(value)
        return text if bare else f"{text} {self.unit}"


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "attainment",
            "SLO attainment",
            "%",
            1,
            1,
            True,
            "Offered requests that finished within both their TTFT and their ITL target.",
        ),
        Metric(
            "value_attainment",
            "Value-weighted attainment",
            "%",
            1,
            1,
            False,
            "The same with each request weighted by the value of its class.",
        ),
        Metric(
            "ttft_attainment",
            "TTFT attainment",
            "%",
            1,
            1,
            True,
            "Offered requests whose first token came within the target.",
        ),
        Metric(
            "itl_attainment",
            "ITL attainment",
            "%",
            1,
            1,
            True,
            "Offered requests that finished with a mean inter-token latency within the target.",
        ),
        Metric(
            "goodput_rps",
            "Goodput",
            "req/s",
            1,
            2,
            True,
            "Requests per second that met both targets.",
        ),
        Metric("ttft_p50_ms", "TTFT p50", "ms", -1, 0, True, "Median time to first token."),
        Metric("ttft_p95_ms", "TTFT p95", "ms", -1, 0, True, "95th percentile."),
        Metric("ttft_p99_ms", "TTFT p99", "ms", -1, 0, True, "99th percentile."),
        Metric("itl_p50_ms", "ITL p50", "ms", -1, 1, True, "Median inter-token latency."),
        Metric("itl_p95_ms", "ITL p95", "ms", -1, 1, True, "95th percentile."),
        Metric("itl_p99_ms", "ITL p99", "ms", -1, 1, True, "99th percentile."),
        Metric(
            "gpu_hours",
            "GPU-hours",
            "h",
            -1,
            1,
            False,
            "GPU time held, replicas that start or drain included.",
        ),
        Metric("cost", "Cost", "$", -1, 2, False, "GPU-hours at each pool's price."),
        Metric(
            "cost_per_1k",
            "Cost per 1,000 attained",
            "$",
            -1,
            2,
            False,
            "Cost divided by requests that met both targets.",
        ),
        Metric(
            "scaling_actions",
            "Scaling actions",
            "",
            -1,
            0,
            False,
            "Changes of a pool's target replicas.",
        ),
        Metric(
            "reversals",
            "Reversals",
            "",
            -1,
            0,
            False,
            "Changes that undo the direction of the pool's change in the 10 minutes before.",
        ),
        Metric(
            "recovery_s",
            "Recovery after worst dip",
            "s",
            -1,
            0,
            False,
            "Longest stretch of minutes below 90 % value-weighted attainment, up to the end of the "
            "run if it never recovered.",
        ),
        Metric(
            "prefix_hit_rate",
            "Prefix hit rate",
            "%",
            1,
            1,
            True,
            "Prompt tokens found in a worker's prefix cache.",
        ),
        Metric("offered", "Offered", "", 0, 0, True, "Requests that arrived."),
        Metric("unfinished", "Unfinished", "", -1, 0, True, "Still in the system at the end."),
        Metric("rejected", "Rejected", "", -1, 0, True, "Refused at arrival."),
        Metric("restarts", "Restarts", "", -1, 0, True, "Requests begun again after a failure."),
        Metric(
            "budget_violations",
            "Budget violations",
            "",
            -1,
            0,
            False,
            "Samples of the timeline at which more GPUs were held than the budget allows.",
        ),
    )
}


def gpu_hours_column(gpu_type: str) -> str:
    """Column with the GPU-hours of one GPU type."""
    return f"gpu_hours_{gpu_type}"


def compute(result: SimResult) -> list[Row]:
    """All metrics of a run: the row of the whole run first, then one per class.

    Args:
        result: the finished simulation. Rates are per second of its trace.
    """
    spec, duration_s = result.spec, result.duration_s
    attained = result.attained
    class_id = result.class_id
    everything = np.ones(attained.size, dtype=np.bool_)
    total = _request_metrics(result, everything)
    total |= _cluster_metrics(result)
    values = np.array([c.value for c in spec.slo_classes])[class_id]
    total["value_attainment"] = ratio(values[attained].sum(), values.sum())
    total["recovery_s"] = recovery_s(result.arrival_s, attained, values, duration_s)
    total["cost_per_1k"] = ratio(1000.0 * float(total["cost"]), attained.sum())
    rows: list[Row] = [{"class": ALL_CLASSES, **total}]
    for index, slo_class in enumerate(spec.slo_classes):
        members = class_id == index
        rows.append({"class": slo_class.name, **_request_metrics(result, members)})
    return rows


def latencies_ms(result: SimResult) -> tuple[FloatArray, FloatArray]:
    """TTFT and ITL of every offered request in ms; NaN where it never happened."""
    ttft = 1e3 * result.ttft_s
    itl = 1e3 * result.itl_s
    # A request that did not finish has no ITL, however fast its tokens came so far.
    return ttft, np.where(result.status == STATUS_FINISHED, itl, np.nan)


def _request_metrics(result: SimResult, members: NDArray[np.bool_]) -> dict[str, float]:
    """Metrics that exist per class, over the requests of a mask."""
    classes = result.spec.slo_classes
    ttft, itl = latencies_ms(result)
    everyone = Outcomes(
        ttft_ms=ttft,
        itl_ms=itl,
        ttft_target_ms=np.array([c.ttft_ms for c in classes])[result.class_id],
        itl_target_ms=np.array([c.itl_ms for c in classes])[result.class_id],
        attained=result.attained,
    )
    status = result.status[members]
    began = members & ~np.isnan(ttft)
    return request_metrics(everyone.of(members), result.duration_s) | {
        "unfinished": float((status == 0).sum()),
        "rejected": float((status == STATUS_REJECTED).sum()),
        "restarts": float(result.restarts[members].sum()),
        "prefix_hit_rate": ratio(result.cached_tokens[began].sum(), result.isl_tokens[began].sum()),
    }


def _cluster_metrics(result: SimResult) -> dict[str, float]:
    """Metrics of the cluster as a whole: GPUs, cost, actions, budget."""
    spec = result.spec
    hours = result.gpu_seconds / 3600.0
    prices = np.array([p.price_per_gpu_hour for p in spec.pools])
    within = result.timeline["t_s"] <= result.duration_s
    actions, reversals = scaling_actions(
        result.timeline["t_s"][within], result.timeline["target"][within]
    )
    row = {
        "gpu_hours": float(hours.sum()),
        "cost": float((hours * prices).sum()),
        "scaling_actions": float(actions.sum()),
        "reversals": float(reversals.sum()),
        "replicas_started": float(result.scale_ups.sum()),
        "replicas_stopped": float(result.scale_downs.sum()),
        "budget_violations": float(budget_violations(result)),
    }
    for gpu_type in spec.gpu_types:
        of_type = np.array([p.gpu_type == gpu_type for p in spec.pools])
        row[gpu_hours_column(gpu_type)] = float(hours[of_type].sum())
    return row


def gpus_held(result: SimResult) -> NDArray[np.int64]:
    """GPUs each pool holds at each sample of the timeline, shape [samples, pools]."""
    timeline, spec = result.timeline, result.spec
    replicas = timeline["ready"] + timeline["starting"] + timeline["draining"]
    per_replica = np.array([p.gpus_per_replica for p in spec.pools], dtype=np.int64)
    return np.asarray(replicas * per_replica, dtype=np.int64)


def budget_violations(result: SimResult) -> int:
    """Samples at which the GPUs held exceed any part of the budget."""
    spec, held = result.spec, gpus_held(result)
    over = np.zeros(held.shape[0], dtype=np.bool_)
    for gpu_type, allowed in spec.budget.gpus.items():
        of_type = np.array([p.gpu_type == gpu_type for p in spec.pools])
        over |= held[:, of_type].sum(axis=1) > allowed
    if spec.budget.total_gpus is not None:
        over |= held.sum(axis=1) > spec.budget.total_gpus
    if spec.budget.watts is not None:
        watts = np.array([spec.power_w_per_replica(i) for i in range(len(spec.pools))])
        watts = watts / np.array([p.gpus_per_replica for p in spec.pools])
        # A sum of floats may miss the limit by rounding alone.
        over |= (held * watts).sum(axis=1) > spec.budget.watts * (1 + 1e-9)
    return int(over.sum())


def scaling_actions(
    t_s: FloatArray, target: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Changes of target and reversals per pool, from the sampled timeline.

    A reversal is a change in the other direction than the pool's last change when that was at
    most 10 minutes before.
    """
    pools = target.shape[1]
    actions = np.zeros(pools, dtype=np.int64)
    reversals = np.zeros(pools, dtype=np.int64)
    steps = np.diff(target.astype(np.int64), axis=0)
    for pool in range(pools):
        at = np.flatnonzero(steps[:, pool])
        actions[pool] = at.size
        turned = np.sign(steps[at[1:], pool]) != np.sign(steps[at[:-1], pool])
        soon = np.diff(t_s[at + 1]) <= REVERSAL_WINDOW_S
        reversals[pool] = int((turned & soon).sum())
    return actions, reversals


def recovery_s(
    arrival_s: FloatArray, attained: NDArray[np.bool_], values: FloatArray, duration_s: float
) -> float:
    """Length in seconds of the worst dip: the longest stretch of minutes below 90 % attainment.

    Minutes without arrivals neither end a dip nor count as recovered. A run that never recovers
    counts until its end.

    Args:
        arrival_s: when each request arrived.
        attained: whether it met its targets.
        values: weight of each request.
        duration_s: length of the trace.
    """
    bins = max(1, int(np.ceil(duration_s / RECOVERY_WINDOW_S)))
    index = np.minimum((arrival_s / RECOVERY_WINDOW_S).astype(np.int64), bins - 1)
    offered = np.bincount(index, weights=values, minlength=bins)
    met = np.bincount(index, weights=values * attained, minlength=bins)
    busy = np.flatnonzero(offered > 0)
    good = met[busy] >= RECOVERED_ATTAINMENT * offered[busy]
    worst = 0.0
    fell_s: float | None = None
    for at, kept in zip(busy * RECOVERY_WINDOW_S, good, strict=True):
        if not kept and fell_s is None:
            fell_s = float(at)
        elif kept and fell_s is not None:
            worst, fell_s = max(worst, float(at) - fell_s), None
    return worst if fell_s is None else max(worst, duration_s - fell_s)
