"""What no run of the simulator may violate, whatever the cluster, the load and the decisions.

Requests end once, replicas hold no GPU the budget does not have, KV blocks stay within capacity,
time goes forward, and the same seed gives the same trajectory however the run is cut into pieces.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.simulation import SimResult, Simulation
from hrl_planner.planner.policy import Plan
from hrl_planner.spec import BudgetSpec, ClusterSpec, PoolSpec
from tests.builders import GPU, cluster, constant_profile, pool, trace
from tests.random_clusters import Case, Features, cases, features, make_case

UNFINISHED, FINISHED, REJECTED = range(3)
GRACE_S = 100.0
COLUMNS = (
    "prefill_pool",
    "decode_pool",
    "cached_tokens",
    "first_token_s",
    "finish_s",
    "status",
    "restarts",
)

random_cases = settings(max_examples=100)


def start(case: Case) -> Simulation:
    """A simulation of the case at time 0."""
    return Simulation(case.spec, case.trace, seed=case.features.seed, events=case.events)


def play(case: Case, stops: tuple[float, ...] = (), until_s: float | None = None) -> Simulation:
    """Run a case to its end with extra stops on the way."""
    simulation = start(case)
    plans = [(time_s, 0, plan) for time_s, plan in case.plans]
    pauses = [(time_s, 1, None) for time_s in stops]
    for time_s, _, plan in sorted([*plans, *pauses], key=lambda step: step[:2]):
        simulation.advance_to(time_s)
        if plan is not None:
            simulation.apply(plan)
    simulation.advance_to(case.trace.duration_s + GRACE_S if until_s is None else until_s)
    return simulation


def assert_same(one: SimResult, other: SimResult) -> None:
    """Compare two runs column by column, to the last bit."""
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    # The bill is a sum that every look at it splits once more.
    np.testing.assert_allclose(one.gpu_seconds, other.gpu_seconds, rtol=1e-12)


def unhurt(chosen: Features) -> Features:
    """The same case with nothing that takes workers away."""
    return replace(
        chosen,
        kills=False,
        failures=False,
        inventory=False,
        hand_edits=False,
        tight_budget=False,
    )


class TestRequests:
    @random_cases
    @given(case=cases())
    def test_the_columns_of_a_request_tell_one_story(self, case: Case) -> None:
        result = play(case).result()
        finished = result.status == FINISHED
        rejected = result.status == REJECTED
        assert np.all(np.isin(result.status, (UNFINISHED, FINISHED, REJECTED)))
        assert np.array_equal(~np.isnan(result.finish_s), finished)
        assert np.all(result.first_token_s[finished] > result.arrival_s[finished])
        assert np.all(result.finish_s[finished] >= result.first_token_s[finished])
        assert np.all(np.isnan(result.first_token_s[rejected]))
        assert np.all(result.prefill_pool[rejected] == -1)
        assert np.all(result.prefill_pool[finished] >= 0)
        assert np.all(result.decode_pool[finished] >= 0)
        single = finished & (result.osl_tokens == 1) & (result.restarts == 0)
        np.testing.assert_array_equal(result.first_token_s[single], result.finish_s[single])

    @random_cases
    @given(chosen=features())
    def test_with_workers_enough_every_request_ends(self, chosen: Features) -> None:
        case = make_case(unhurt(chosen))
        simulation = play(case)
        everything = np.array([p.max_replicas for p in case.spec.pools], np.int64)
        simulation.apply(Plan(everything))
        simulation.finish(grace_s=5000.0)
        assert simulation.all_resolved
        assert np.all(simulation.result().status != UNFINISHED)

    @random_cases
    @given(case=cases(), share=st.floats(0.0, 1.5))
    def test_resolved_means_that_none_is_unfinished(self, case: Case, share: float) -> None:
        until_s = share * case.trace.duration_s
        simulation = start(case)
        simulation.advance_to(until_s)
        result = simulation.result()
        offered = result.arrival_s <= until_s
        left = offered & (result.status == UNFINISHED)
        assert simulation.all_resolved == (bool(offered.all()) and not left.any())
        assert np.all(result.status[~offered] == UNFINISHED)
        seen = result.first_token_s[~np.isnan(result.first_token_s)]
        assert np.all(result.finish_s[result.status == FINISHED] <= until_s)
        assert np.all(seen <= until_s)

    def test_a_token_under_way_has_not_been_seen(self) -> None:
        slow = cluster(pool("prefill"), pool("decode", constant_profile(decode_ms=1000.0)))
        simulation = Simulation(slow, trace([0.0], 100, 3, duration_s=10.0))
        simulation.advance_to(0.5)
        assert np.isnan(simulation.result().first_token_s[0])
        simulation.advance_to(1.5)
        assert simulation.result().first_token_s[0] == pytest.approx(1.010, rel=1e-9)

    @random_cases
    @given(case=cases())
    def test_workers_never_serve_more_than_was_offered(self, case: Case) -> None:
        result = play(case).result()
        timeline = result.timeline
        at_workers = (timeline["waiting"] + timeline["running"]).sum(axis=1)
        arrived = np.searchsorted(result.arrival_s, timeline["t_s"], side="right")
        ended = np.searchsorted(
            np.sort(result.finish_s[result.status == FINISHED]), timeline["t_s"], side="right"
        )
        assert np.all(at_workers >= 0)
        assert np.all(at_workers <= arrived - ended)

    @random_cases
    @given(case=cases())
    def test_cached_tokens_are_whole_blocks_short_of_the_prompt(self, case: Case) -> None:
        result = play(case).result()
        cached = result.cached_tokens
        assert np.all((cached >= 0) & (cached < result.isl_tokens))
        whole = cached % case.trace.block_tokens == 0
        assert np.all(whole | (cached == result.isl_tokens - 1))
        assert np.all(cached <= np.diff(case.trace.block_offsets) * case.trace.block_tokens)

    def test_a_request_that_fits_nowhere_is_rejected_at_once(self) -> None:
        tight = constant_profile(kv_capacity_tokens=1000)
        spec = cluster(pool("prefill"), pool("decode", tight))
        simulation = Simulation(spec, trace([1.0, 2.0], [2000, 500], 10))
        simulation.finish()
        assert simulation.result().status.tolist() == [REJECTED, FINISHED]

    def test_an_aggregated_pool_too_small_does_not_hide_that_nothing_fits(self) -> None:
        tight = constant_profile(kv_capacity_tokens=1000)
        spec = cluster(pool("prefill"), pool("decode", tight), pool("aggregated", tight))
        simulation = Simulation(spec, trace([1.0, 2.0], [2000, 500], 10))
        simulation.finish()
        assert simulation.result().status.tolist() == [REJECTED, FINISHED]


class TestBudget:
    @random_cases
    @given(case=cases())
    def test_replicas_never_hold_more_than_the_budget(self, case: Case) -> None:
        result = play(case).result()
        held = held_replicas(result)
        budget = case.spec.budget
        gpus = held * [p.gpus_per_replica for p in case.spec.pools]
        for gpu_type, limit in budget.gpus.items():
            of_type = [p.gpu_type == gpu_type for p in case.spec.pools]
            assert gpus[:, of_type].sum(axis=1).max() <= limit
        if budget.total_gpus is not None:
            assert gpus.sum(axis=1).max() <= budget.total_gpus
        if budget.watts is not None:
            watts = [case.spec.power_w_per_replica(i) for i in range(len(case.spec.pools))]
            assert (held @ watts).max() <= budget.watts * (1 + 1e-12)
        slots = [p.max_replicas for p in case.spec.pools]
        assert np.all(held <= slots)

    @random_cases
    @given(case=cases())
    def test_gpu_time_is_what_the_replicas_held(self, case: Case) -> None:
        result = play(case).result()
        limit = sum(case.spec.budget.gpus.values()) * case.trace.duration_s
        assert np.all(result.gpu_seconds >= 0.0)
        assert result.gpu_seconds.sum() <= limit * (1 + 1e-9)

    @random_cases
    @given(case=cases())
    def test_a_replica_is_live_or_pending_for_every_one_asked_for(self, case: Case) -> None:
        timeline = play(case).result().timeline
        live = timeline["ready"] + timeline["starting"]
        np.testing.assert_array_equal(live + timeline["pending"], timeline["target"])

    def test_a_pending_replica_starts_when_another_pool_lets_go(self) -> None:
        spec = two_pools_on(gpus=3)
        simulation = Simulation(spec, trace([0.5], 100, 1, duration_s=60.0))
        simulation.advance_to(10.0)
        simulation.apply(Plan(np.array([2, 2])))
        simulation.advance_to(20.0)
        simulation.apply(Plan(np.array([1, 2])))
        simulation.advance_to(30.0)
        timeline = simulation.result().timeline
        before = timeline[timeline["t_s"] < 20.0][-1]
        after = timeline[timeline["t_s"] > 20.0][-1]
        assert before["ready"].tolist() == [2, 1] and before["pending"].tolist() == [0, 1]
        assert after["ready"].tolist() == [1, 2] and after["pending"].tolist() == [0, 0]


class TestKvBlocks:
    @random_cases
    @given(case=cases())
    def test_requests_in_answer_fit_the_workers_that_answer_them(self, case: Case) -> None:
        """At each first token, the blocks of all requests between first and last token fit."""
        chosen = replace(case.features, tight_kv=True, kills=False, failures=False)
        case = make_case(chosen)
        result = play(case).result()
        assert result.timeline["kv_use"].max(initial=0.0) <= 1.0
        block = case.spec.kv_block_tokens
        tokens = result.isl_tokens.astype(np.int64) + result.osl_tokens
        blocks = -(-tokens // block)
        for index, profile in enumerate(case.spec.profiles()):
            mine = (result.decode_pool == index) & ~np.isnan(result.first_token_s)
            room = (profile.kv_capacity_tokens // block) * case.spec.pools[index].max_replicas
            end_s = np.where(np.isnan(result.finish_s), np.inf, result.finish_s)
            for now_s in result.first_token_s[mine]:
                inside = mine & (result.first_token_s <= now_s) & (end_s > now_s)
                assert blocks[inside].sum() <= room

    @random_cases
    @given(chosen=features())
    def test_no_more_requests_run_than_sequences_allow(self, chosen: Features) -> None:
        case = make_case(replace(chosen, few_seqs=True))
        result = play(case).result()
        seqs = np.array([p.max_num_seqs for p in case.spec.pools])
        assert np.all(result.timeline["running"] <= held_replicas(result) * seqs)


class TestTime:
    @random_cases
    @given(case=cases())
    def test_time_never_runs_back(self, case: Case) -> None:
        simulation = start(case)
        last_s = simulation.now_s
        for until_s in (3.0, 1.0, 3.0, 7.5, 7.5):
            simulation.advance_to(until_s)
            assert simulation.now_s == max(last_s, until_s)
            last_s = simulation.now_s
        assert np.all(np.diff(simulation.result().timeline["t_s"]) > 0)

    @random_cases
    @given(case=cases(), stops=st.lists(st.floats(0.0, 60.0), max_size=20))
    def test_how_a_run_is_cut_into_pieces_changes_nothing(
        self, case: Case, stops: list[float]
    ) -> None:
        assert_same(play(case).result(), play(case, tuple(stops)).result())

    @random_cases
    @given(chosen=features(("round_robin", "least_loaded")))
    def test_a_world_twice_as_slow_takes_twice_as_long(self, chosen: Features) -> None:
        """No constant of time hides in the kernel: double every time and results double."""
        case = make_case(replace(chosen, startup="constant", inventory=False, hand_edits=False))
        slow = twice_as_slow(replace(case, events=()))
        usual = play(replace(case, events=())).result()
        doubled = play(slow, until_s=2.0 * (case.trace.duration_s + GRACE_S)).result()
        np.testing.assert_allclose(doubled.finish_s, 2.0 * usual.finish_s, rtol=1e-9)
        np.testing.assert_allclose(doubled.gpu_seconds, 2.0 * usual.gpu_seconds, rtol=1e-9)


class TestDeterminism:
    @random_cases
    @given(case=cases())
    def test_the_same_seed_gives_the_same_trajectory(self, case: Case) -> None:
        assert_same(play(case).result(), play(case).result())

    @random_cases
    @given(case=cases())
    def test_looking_changes_nothing(self, case: Case) -> None:
        simulation = start(case)
        for time_s, plan in case.plans:
            simulation.advance_to(time_s)
            simulation.observe()
            simulation.result()
            simulation.apply(plan)
        simulation.advance_to(case.trace.duration_s + GRACE_S)
        assert_same(play(case).result(), simulation.result())

    @pytest.mark.parametrize("distribution", ["uniform", "lognormal"])
    def test_start_up_times_follow_the_seed_and_not_the_moment(self, distribution: str) -> None:
        startup = {"distribution": distribution, "mean_s": 5.0}
        startup |= {"spread_s": 4.0} if distribution == "uniform" else {"cv": 0.5}
        spec = cluster(pool("aggregated", replicas=0, startup=startup), name="starts")
        load = trace([0.0], 100, 1, duration_s=100.0)

        def first_token(seed: int, asked_s: float) -> float:
            simulation = Simulation(spec, load, seed=seed)
            simulation.advance_to(asked_s)
            simulation.apply(Plan(np.array([1])))
            simulation.advance_to(100.0)
            return float(simulation.result().first_token_s[0]) - asked_s

        assert first_token(1, 3.0) == pytest.approx(first_token(1, 20.0), rel=1e-12)
        assert first_token(1, 3.0) != pytest.approx(first_token(2, 3.0), rel=1e-3)


def held_replicas(result: SimResult) -> np.ndarray:
    """Replicas that hold GPUs, per sample and pool."""
    timeline = result.timeline
    return np.asarray(timeline["ready"] + timeline["starting"] + timeline["draining"])


def two_pools_on(gpus: int) -> ClusterSpec:
    """Two aggregated pools with one replica each and few GPUs between them."""
    return cluster(
        pool("aggregated", name="one"),
        pool("aggregated", name="two"),
        budget=BudgetSpec(gpus={GPU: gpus}),
    )


def twice_as_slow(case: Case) -> Case:
    """The same case with every duration and every moment doubled."""

    def slower(spec: PoolSpec) -> PoolSpec:
        startup = spec.startup.model_copy(
            update={
                "mean_s": 2 * spec.startup.mean_s,
                "warmup_s": 2 * spec.startup.warmup_s,
            }
        )
        mtbf_h = None if spec.mtbf_h is None else 2 * spec.mtbf_h
        return spec.model_copy(
            update={
                "startup": startup,
                "latency_scale": 2 * spec.latency_scale,
                "mtbf_h": mtbf_h,
            }
        )

    link = case.spec.kv_transfer
    spec = case.spec.replace(
        pools=tuple(map(slower, case.spec.pools)),
        kv_transfer=link.model_copy(
            update={
                "latency_ms": 2 * link.latency_ms,
                "bandwidth_gb_per_s": link.bandwidth_gb_per_s / 2,
            }
        ),
    )
    load = replace(
        case.trace, arrival_s=2 * case.trace.arrival_s, duration_s=2 * case.trace.duration_s
    )
    plans = tuple((2 * time_s, plan) for time_s, plan in case.plans)
    return replace(case, spec=spec, trace=load, plans=plans)
