"""What the fluid planner remembers of pools, and that it lets go of what is not needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hrl_planner.budget import BudgetArrays
from hrl_planner.observation import POOL_FIELDS, ClusterObservation
from hrl_planner.planner.policy import IntArray
from hrl_planner.planner.pool_memory import PoolMemory
from hrl_planner.spec import ClusterSpec
from tests.test_policies import busy, planner

SPEC = ClusterSpec.load("small")
N_POOLS = len(SPEC.pools)
SETTLE_S, SPARE_S, IDLE_S = 20.0, 60.0, 600.0


DECODE = [pool.role == "decode" for pool in SPEC.pools]


def follows(seen: ClusterObservation, replicas: IntArray) -> ClusterObservation:
    """What is seen where every replica that was asked for serves at once."""
    pools = seen.pools.copy()
    for name in ("target_replicas", "ready", "quota"):
        pools[:, POOL_FIELDS.index(name)] = replicas
    return replace(seen, pools=pools)


def memory() -> PoolMemory:
    return PoolMemory(
        BudgetArrays.from_spec(SPEC),
        idle_s=IDLE_S,
        spare_s=SPARE_S,
        patience_s=10.0,
        settle_s=SETTLE_S,
    )


@given(uses=st.lists(st.floats(0.0, 6.0), min_size=1, max_size=90))
def test_spare_is_what_the_most_demanding_plan_of_the_while_did_not_use(
    uses: list[float],
) -> None:
    """Each plan is seen at the look after it, ten seconds later."""
    remembered = memory()
    for turn, used in enumerate(uses):
        now_s = 10.0 * turn
        targets = busy(now_s).pool_field("target_replicas").astype(np.int64)
        spare, useless = remembered.spare(now_s, targets)
        seen = [(10.0 * k + 10.0, use) for k, use in enumerate(uses[:turn])]
        for got, for_s in ((spare, SPARE_S), (useless, IDLE_S)):
            within = [use for t_s, use in seen if t_s >= now_s - for_s]
            known = within and now_s >= SETTLE_S + for_s
            most = np.ceil(max(within)) if known else np.inf
            np.testing.assert_array_equal(got, np.maximum(targets - most, 0.0))
        assert np.all(useless <= spare)
        remembered.use(np.full(N_POOLS, used))


def test_what_is_needed_no_more_goes_however_dear_it_is_to_stop() -> None:
    def held(spare_s: float, idle_s: float) -> int:
        policy = planner(
            hold_s=30.0, spare_s=spare_s, idle_s=idle_s, stop_weight=0.05, stop_weight_decode=5.0
        )
        plan = policy.decide(busy(0.0))
        now_s = 0.0
        for rate in [60.0] * 30 + [3.0] * 60:
            now_s += 10.0
            plan = policy.decide(follows(busy(now_s, rate), plan.replicas))
        return int(plan.replicas[DECODE].sum())

    never, spare, useless = held(1e9, 1e9), held(60.0, 1e9), held(1e9, 120.0)
    assert spare < never
    assert useless < never
