"""Named situations to put planners in: fourteen from incident reports, and one ordinary busy day.

`SCENARIOS["cold-start-ramp"].build(spec, seed=0)` gives the spec, the trace and the events. What
each is about, and what a planner must do in it, is its `description`; docs/workload.md lists them.
"""

from hrl_planner.errors import ScenarioError
from hrl_planner.workload.scenarios import demand, disruption
from hrl_planner.workload.scenarios.base import Scenario, ScenarioCase

_ALL = (
    Scenario(
        "diurnal-mix",
        "a compressed busy day of all classes",
        "own",
        "A day in an hour: each class has its own hours, bursts ride on the first. The budget is "
        "enough most of the time and a little short at the peaks: GPUs must move between pools, "
        "and whoever moves them late loses requests.",
        demand.diurnal_mix,
        duration_s=3600.0,
    ),
    Scenario(
        "prefill-starved-sinusoid",
        "long prompts swing 24-fold, prefill starts at its minimum",
        "S1 dynamo#10528",
        "Prompts of 8,000 tokens, answers of 1,000. Time in the prefill queue is most of the TTFT: "
        "a planner that looks at service times only reaches 9 % goodput.",
        demand.prefill_starved_sinusoid,
    ),
    Scenario(
        "zero-traffic",
        "busy, then nothing",
        "S2 dynamo#6985",
        "After a third of the time no request comes any more and latencies turn NaN. Every pool "
        "must go down to its minimum.",
        demand.zero_traffic,
    ),
    Scenario(
        "pending-pod",
        "the GPUs a scale-up asks for do not exist, then the load vanishes",
        "S3 dynamo#14251",
        "Replicas stay pending. A planner must neither wait for them for ever nor count them; when "
        "the load is gone it cancels them and scales down.",
        disruption.pending_pod,
    ),
    Scenario(
        "steady-no-flap",
        "a constant load between two replica counts",
        "S4 dynamo#9294",
        "Nothing changes. Neither should the replicas, after the first minutes.",
        demand.steady_no_flap,
    ),
    Scenario(
        "over-budget-start",
        "a third of the GPUs in use are gone at the start",
        "S5 dynamo#11220 #13465 #8583",
        "All of the budget runs, and a third of the GPUs ceases to exist. Replicas must only "
        "shrink until they fit; never may the total rise.",
        disruption.over_budget_start,
    ),
    Scenario(
        "cold-replica-warmup",
        "fresh replicas are slow for a minute",
        "S6 dynamo#12430",
        "The load doubles once. Latencies of warming replicas must not be taken for missing "
        "capacity: no runaway scale-up.",
        disruption.cold_replica_warmup,
    ),
    Scenario(
        "priority-reclaim",
        "the least valuable class fills the budget, then the most valuable needs it",
        "S7 llm-d-autoscaling#1447",
        "The hungry class asks for more than all there is. In the second third the valuable class "
        "comes and GPUs must change hands by value.",
        disruption.priority_reclaim,
    ),
    Scenario(
        "spill-over",
        "the preferred GPU type has run out",
        "S8 llm-d-autoscaling#1331",
        "Only what already runs of the dearest GPU type exists. Load must spill over to the other "
        "types where they can keep the promise.",
        disruption.spill_over,
    ),
    Scenario(
        "cold-start-ramp",
        "a ramp steeper than any start-up",
        "S9 llm-d-autoscaling#1071",
        "The load rises tenfold in 130 s while a replica takes 130 to 420 s to start. Who waits "
        "for the queue has lost; who extrapolates loses less.",
        demand.cold_start_ramp,
    ),
    Scenario(
        "pd-ratio-shift",
        "from long prompts to long answers at the same rate",
        "S10 aibrix#2613 kthena#905",
        "Requests per second never change; the work moves from prefill to decode halfway through, "
        "and the GPUs have to follow.",
        demand.pd_ratio_shift,
    ),
    Scenario(
        "metrics-outage",
        "no metrics for a while",
        "S11 kserve#6018",
        "Everything falls silent on the way up to a peak. Hold first, then fall back; do not take "
        "silence for an idle cluster.",
        disruption.metrics_outage,
    ),
    Scenario(
        "burst-slow-starters",
        "bursts shorter than a start-up",
        "S12 knative#13284 #3153",
        "Replicas started for a burst come when it is over. No overshoot, and no collapse after.",
        demand.burst_slow_starters,
    ),
    Scenario(
        "missing-profile",
        "no profile for the largest pools",
        "S13 aibrix#1713 #1014",
        "Planners that compute capacity have nothing to compute with for one prefill and one "
        "decode pool: degrade to thresholds there, say so, do not stay at the minimum.",
        disruption.missing_profile,
    ),
    Scenario(
        "hand-edited-replicas",
        "an operator edits replicas by hand",
        "S14 dynamo#4420",
        "The largest decode pool is set to 0, later a prefill pool to its limit. The planner "
        "reconciles, within budget; there is no dead state.",
        disruption.hand_edited_replicas,
    ),
)

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
DEFAULT_SCENARIO = "diurnal-mix"


def find_scenario(name: str) -> Scenario:
    """The scenario of a name.

    Raises:
        ScenarioError: there is none; the message lists those there are.
    """
    if name not in SCENARIOS:
        raise ScenarioError(f"unknown scenario {name!r}; one of: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


__all__ = ["DEFAULT_SCENARIO", "SCENARIOS", "Scenario", "ScenarioCase", "find_scenario"]
