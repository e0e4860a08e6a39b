"""A checkpoint as one policy: allocator over scaler, in the shield, on one clock.

`learned` in the registry. The planner pods run the two levels apart, with the same classes.
"""

from __future__ import annotations

from pathlib import Path

from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.checkpoint import Checkpoint, load, shipped
from hrl_planner.planner.hierarchy import HierarchicalPlanner
from hrl_planner.planner.learned import LearnedAllocator, LearnedScaler
from hrl_planner.planner.policy import Plan, PlanContext, Policy
from hrl_planner.planner.quota import QuotaPolicy
from hrl_planner.planner.rule import RulePolicy
from hrl_planner.planner.shield import Interventions, ShieldedAllocator, ShieldedScaler

_LOCALS = ("learned", "rule", "none")


def allocator_of(
    checkpoint: Checkpoint, log: Interventions | None, prior: str | None = None
) -> Policy:
    """Return a checkpoint's allocator; in the shield if interventions have somewhere to go.

    Args:
        checkpoint: which.
        log: where a shield tells what it does; None for none.
        prior: the policy it corrects, instead of the one it was trained over.

    Raises:
        PolicyError: the prior cannot be corrected as the checkpoint does.
    """
    from hrl_planner.planner.registry import make_policy

    manifest = checkpoint.manifest
    learned = LearnedAllocator(
        checkpoint.allocator,
        make_policy(manifest.prior if prior is None else prior),
        head=manifest.head,
        moves=manifest.moves,
    )
    if log is None:
        return learned
    return ShieldedAllocator(learned, RulePolicy(), manifest.ranges, log)


def scaler_of(checkpoint: Checkpoint, log: Interventions | None) -> Policy:
    """Return a checkpoint's local planner; the rule where it has none."""
    rule = RulePolicy(within_quota=True)
    if checkpoint.scaler is None:
        return rule
    learned = LearnedScaler(checkpoint.scaler)
    if log is None:
        return learned
    return ShieldedScaler(learned, rule, checkpoint.manifest.ranges, log)


class DeployedPlanner:
    """A trained planner.

    Args:
        path: the checkpoint's folder; absent, the one that ships for the spec.
        shield: let the shield stand around both levels.
        local: `learned` for the checkpoint's scaler, `rule` for the rule, `none` to let quotas be
            targets.
        prior: the policy the allocator corrects, instead of the one it was trained over.
    """

    name = "learned"

    def __init__(
        self,
        path: Path | None = None,
        shield: bool = True,
        local: str = "learned",
        prior: str | None = None,
    ) -> None:
        """See the class."""
        from hrl_planner.planner.registry import make_policy

        if local not in _LOCALS:
            raise PolicyError(
                f"policy learned, local: unknown {local!r}; one of {', '.join(_LOCALS)}"
            )
        if prior is not None:
            make_policy(prior)  # an unknown one is refused here and now
        self._checkpoint = None if path is None else load(path)
        self._shield, self._local, self._prior = shield, local, prior
        self.interventions = Interventions()
        self.interval_s = 10.0
        self._policy: Policy | None = None

    def reset(self, context: PlanContext) -> None:
        """Load the checkpoint where that depends on the spec, and start anew."""
        checkpoint = self._checkpoint or load(shipped(context.spec.name))
        self.interventions = Interventions()
        log = self.interventions if self._shield else None
        allocator = allocator_of(checkpoint, log, self._prior)
        if checkpoint.manifest.head == "flat":
            self._policy = allocator
        elif self._local == "none":
            self._policy = HierarchicalPlanner(allocator, QuotaPolicy())
        elif self._local == "rule":
            self._policy = HierarchicalPlanner(allocator, RulePolicy(within_quota=True))
        else:
            self._policy = HierarchicalPlanner(allocator, scaler_of(checkpoint, log))
        self._policy.reset(context)
        self.interval_s = self._policy.interval_s

    def listen(self, observation: ClusterObservation) -> Plan:
        """Answer where others ask less often than every local interval: it has a clock itself."""
        return self.decide(observation)

    def decide(self, observation: ClusterObservation) -> Plan:
        """Answer one observation."""
        if self._policy is None:
            raise PolicyError("policy learned: decide before reset")
        return self._policy.decide(observation)
