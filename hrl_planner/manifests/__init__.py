"""What an operator applies, made of a cluster spec: accounts, planners, router, network policies.

The checked-in tree under `deploy/` is its output for the spec `small`; `hrl-planner manifests`
writes one for any spec.
"""

from hrl_planner.manifests.accounts import accounts
from hrl_planner.manifests.installation import Installation, PlannerProcess
from hrl_planner.manifests.planners import planner_deployments

__all__ = ["Installation", "PlannerProcess", "accounts", "planner_deployments"]
