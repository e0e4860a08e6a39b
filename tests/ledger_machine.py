"""Random schedules over a modelled cluster (`ledger_cluster.py`), for hypothesis.

A rule is a burst of moves from one seed: drawing every move by itself gives schedules too shallow
to break what has a dozen safeguards, as the mutants show.
"""

from __future__ import annotations

from itertools import islice
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.ledger_audit import Amounts
from tests.ledger_cluster import Cluster, Counts, Mood, Start
from tests.ledger_model import NAMES

FEW = st.integers(0, 6)
NAME = st.sampled_from(NAMES)
BUDGETS = st.fixed_dictionaries(
    {
        "X": st.integers(2, 8).map(float),
        "Y": st.integers(0, 5).map(float),
        "total": st.integers(4, 12).map(float),
        "watts": st.sampled_from([2500.0, 6000.0]),
    }
)
PLANS = st.fixed_dictionaries(dict.fromkeys(NAMES, FEW))
RUNNING = st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(0, 2))) | PLANS
SEEDS = st.integers(0, 2**32 - 1)
STARTS = st.sampled_from(["calm", "calm", "unknown", "any"])


class LedgerMachine(RuleBasedStateMachine):
    """Faults of planners, network, controllers and pods."""

    hands = False
    cluster: Cluster

    @initialize(
        budget=BUDGETS,
        plans=st.tuples(PLANS, PLANS),
        running=RUNNING,
        start=STARTS,
        quotas=st.fixed_dictionaries(dict.fromkeys(NAMES, st.none() | FEW)),
        counts_pods=st.booleans(),
    )
    def begin(
        self,
        budget: Amounts,
        plans: tuple[Counts, ...],
        running: Counts,
        start: Start,
        quotas: dict[str, int | None],
        counts_pods: bool,
    ) -> None:
        self.cluster = Cluster(budget, plans, running, start, quotas, counts_pods)

    def _burst(self, seed: int, mood: Mood, *, hands: bool = False) -> None:
        random = Random(seed)
        for move in islice(self.cluster.moves(random, mood, hands=hands), random.randint(5, 40)):
            move()
            self.cluster.check()

    @rule(seed=SEEDS)
    def leaders_compete(self, seed: int) -> None:
        self._burst(seed, "leaders")

    @rule(seed=SEEDS)
    def a_pool_is_busy(self, seed: int) -> None:
        self._burst(seed, "pool")

    @rule(seed=SEEDS)
    def anything_happens(self, seed: int) -> None:
        self._burst(seed, "any")

    @precondition(lambda self: self.hands)
    @rule(seed=SEEDS)
    def hands_are_in_it(self, seed: int) -> None:
        self._burst(seed, "any", hands=True)

    @precondition(lambda self: self.hands)
    @rule(budget=BUDGETS)
    def the_budget_is_edited(self, budget: Amounts) -> None:
        self.cluster.budget_is_edited(budget)

    @invariant()
    def budget_holds(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.check()

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.arrives_at_the_plan()
