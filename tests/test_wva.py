"""The WVA-like policy: when a role grows, which variant, what the limiter leaves, when it waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hrl_planner.errors import PolicyError
from hrl_planner.observation import POOL_FIELDS, ClusterObservation
from hrl_planner.planner.hpa import STABILISATION_DOWN_S
from hrl_planner.planner.policy import PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.wva import WvaPolicy
from hrl_planner.spec import BudgetSpec, ClusterSpec
from tests.builders import GPU, cluster, constant_profile, pool
from tests.test_policies import closed_loop, poisson

KV_TOKENS = 100_000
CHEAP, DEAR, DECODE = 0, 1, 2


def spec(gpus: int = 30, **decode: Any) -> ClusterSpec:
    """Two variants of prefill, the dear one twice the price, and one of decode."""
    profile = constant_profile(kv_capacity_tokens=KV_TOKENS)
    more: dict[str, Any] = {"max_replicas": 10, "max_num_batched_tokens": 8000}
    return cluster(
        pool("prefill", profile, 1, name="cheap", **more),
        pool("prefill", profile, 1, name="dear", price_per_gpu_hour=2.0, **more),
        pool("decode", profile, 2, **{**more, **decode}),
        budget=BudgetSpec(gpus={GPU: gpus}),
    )


def seen(now_s: float = 0.0, **fields: Any) -> ClusterObservation:
    """One cheap, one dear and two decode replicas without load; `fields` overrides per pool."""
    pools = np.zeros((3, len(POOL_FIELDS)))
    defaults: dict[str, Any] = {
        "target_replicas": (1, 1, 2),
        "ready": (1, 1, 2),
        "isl_mean_tokens": 1000.0,
        "osl_mean_tokens": 200.0,
    }
    for name, values in (defaults | fields).items():
        pools[:, POOL_FIELDS.index(name)] = values
    return ClusterObservation(now_s, pools, np.zeros((1, 8)))


def policy(cluster_spec: ClusterSpec | None = None, **parameters: float) -> WvaPolicy:
    made = WvaPolicy(**parameters)
    made.reset(PlanContext(cluster_spec or spec()))
    return made


def test_decode_grows_when_the_tokens_held_pass_85_percent_of_what_it_carries() -> None:
    # A replica carries 0.8 of 100k tokens by memory (B O / (I + O) = 1333 requests is above the
    # limit of 256 sequences, which hold 281k). 0.85 x 2 x 80k = 136k is 68 % of both caches.
    below = policy().decide(seen(kv_use=(0, 0, 0.67))).replicas
    above = policy().decide(seen(kv_use=(0, 0, 0.69))).replicas
    assert below[DECODE] == 2
    assert above[DECODE] == 3


def test_the_cheapest_token_is_bought_first() -> None:
    plan = policy().decide(seen(waiting=(10, 10, 0), running=(8, 8, 0)))
    assert plan.replicas[CHEAP] > 1
    assert plan.replicas[DEAR] == 1


def test_replicas_on_their_way_are_part_of_the_supply() -> None:
    busy = {"kv_use": (0, 0, 0.69), "starting": (0, 0, 1), "target_replicas": (1, 1, 3)}
    assert policy().decide(seen(**busy)).replicas[DECODE] == 3


def test_the_limiter_serves_the_role_that_lacks_most_tokens_first() -> None:
    one_left = spec(gpus=5)
    # Prefill lacks (16k + 60k) / 0.85 - 16k = 73k tokens; decode 138k / 0.85 - 160k = 2k in the
    # first case and 200k / 0.85 - 160k = 75k in the second.
    prefill = seen(waiting=(30, 30, 0), running=(8, 8, 0), kv_use=(0, 0, 0.69))
    decode = seen(waiting=(30, 30, 0), running=(8, 8, 0), kv_use=(0, 0, 1.0))
    assert policy(one_left).decide(prefill).replicas.tolist() == [2, 1, 2]
    assert policy(one_left).decide(decode).replicas.tolist() == [1, 1, 3]


def test_what_a_saturated_replica_held_is_what_it_carries_from_then_on() -> None:
    made = policy()
    made.decide(seen(0.0, kv_use=(0, 0, 0.3), waiting=(0, 0, 10)))
    # 30k tokens each at a queue of 5: 55k are above 0.85 x 2 x 30k, not above 0.85 x 2 x 80k.
    later = seen(100.0, kv_use=(0, 0, 0.275))
    assert made.decide(later).replicas[DECODE] == 3
    assert policy().decide(later).replicas[DECODE] < 3


def test_the_dearest_replica_goes_first_and_one_per_role_stays() -> None:
    made = policy()
    made.decide(seen(0.0))
    plan = made.decide(seen(STABILISATION_DOWN_S + 1.0))
    assert plan.replicas.tolist() == [1, 0, 1]


def test_a_scale_down_waits_for_the_stabilisation_window() -> None:
    made = policy()
    made.decide(seen(0.0, kv_use=(0, 0, 0.67)))
    soon = made.decide(seen(STABILISATION_DOWN_S - 30.0))
    assert soon.replicas[DECODE] == 2


def test_a_peak_counts_for_a_minute() -> None:
    made = policy()
    made.decide(seen(0.0, kv_use=(0, 0, 0.69), target_replicas=(1, 1, 3), ready=(1, 1, 2)))
    assert made.decide(seen(30.0, kv_use=(0, 0, 0.2))).replicas[DECODE] == 3


@pytest.mark.parametrize("unknown", ["waiting", "kv_use"])
def test_a_role_with_unknown_metrics_stays_and_the_other_moves(unknown: str) -> None:
    made = policy()
    fields = {"waiting": (10, 10, 0), "running": (8, 8, 0), unknown: (0, 0, np.nan)}
    if unknown == "waiting":
        fields["waiting"] = (10, 10, np.nan)
    else:
        fields["waiting"] = (10, 10, 0)
    plan = made.decide(seen(STABILISATION_DOWN_S + 1.0, **fields))
    assert plan.replicas[DECODE] == 2
    assert plan.replicas[CHEAP] > 1


def test_a_role_without_replicas_gets_one() -> None:
    nothing = seen(ready=(1, 1, 0), target_replicas=(1, 1, 0))
    assert policy().decide(nothing).replicas[DECODE] == 1


def test_thresholds_out_of_order_are_refused() -> None:
    with pytest.raises(PolicyError, match="down below up"):
        make_policy("wva:down=0.9")


def test_it_serves_a_steady_load_in_closed_loop() -> None:
    simulation, _ = closed_loop("wva", poisson(6.0, 900.0, seed=1))
    simulation.finish()
    assert simulation.result().attained.mean() > 0.8
