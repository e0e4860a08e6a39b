"""The policy: reports what is observed, returns what Dynamo's arbiters approved."""

from __future__ import annotations

import math

import numpy as np

from agents.dynamo import client
from agents.dynamo.client import Json
from agents.dynamo.deployment import describe
from agents.dynamo.telemetry import Telemetry
from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.policy import Plan, PlanContext

PREDICTORS = ("arima", "constant", "kalman", "prophet")


class DynamoPolicy:
    """NVIDIA Dynamo's planner for every pool and its arbiter for every GPU type, unmodified.

    Defaults are Dynamo's where it has one. Nothing is decided here and no routing weights are set.

    Args:
        predictor: of requests and lengths, one of `PREDICTORS`.
        throughput: scale ahead, on predicted traffic, every `throughput_s`.
        load: scale by single replicas, on forward passes, every `load_s`.
        throughput_s: interval of throughput scaling, whole seconds.
        load_s: interval of load scaling and of learning step times, whole seconds.
        sensitivity: per cent of a target that load scaling must predict to keep to scale down.
        intent_ttl_s: how long an arbiter remembers a request it denied.
    """

    name = "dynamo"

    def __init__(
        self,
        predictor: str = "arima",
        throughput: bool = True,
        load: bool = True,
        throughput_s: int = 180,
        load_s: int = 5,
        sensitivity: int = 80,
        intent_ttl_s: float = 360.0,
    ) -> None:
        """See the class."""
        if predictor not in PREDICTORS:
            raise PolicyError(
                f"policy dynamo: predictor {predictor!r}; one of {', '.join(PREDICTORS)}"
            )
        for field, value in (("throughput_s", throughput_s), ("load_s", load_s)):
            if value != int(value) or value < 1:
                raise PolicyError(f"policy dynamo: {field} {value}: not a whole number of seconds")
        self.interval_s = float(math.gcd(load_s, throughput_s) if throughput else load_s)
        self.why: list[Json] = []
        self._python = client.find_python()
        self._intent_ttl_s = intent_ttl_s
        self._traffic_s = float(throughput_s)
        self._planner: Json = {
            "load_predictor": predictor,
            "enable_throughput_scaling": throughput,
            "enable_load_scaling": load,
            "throughput_adjustment_interval_seconds": throughput_s,
            "load_adjustment_interval_seconds": load_s,
            "load_scaling_down_sensitivity": sensitivity,
        }
        self._names: list[str] = []
        self._telemetry: Telemetry | None = None
        self._session: client.Session | None = None

    def reset(self, context: PlanContext) -> None:
        """Deploy planners and arbiters for a cluster.

        Raises:
            PolicyError: for a pool Dynamo cannot be given, or if its interpreter lacks it.
        """
        description = describe(context, self._planner, self._intent_ttl_s)
        if self._session is not None:
            self._session.close()
        self._session = client.Session(client.connect(self._python), description)
        self._telemetry = Telemetry(context.spec, self._traffic_s)
        self._names = [pool.name for pool in context.spec.pools]

    def decide(self, observation: ClusterObservation) -> Plan:
        """Let the planners' clocks come to now; `why` then tells what each of them reasoned."""
        if self._session is None or self._telemetry is None:
            raise PolicyError("policy dynamo: decide before reset")
        answer = self._session.tick(observation.now_s, self._telemetry.read(observation))
        self.why = answer["why"]
        asked = [
            f"{name} {why['wanted']} {why['answer']}"
            for name, why in zip(self._names, self.why, strict=True)
            if "wanted" in why
        ]
        return Plan(np.array(answer["replicas"], np.int64), reason=", ".join(asked) or "dynamo")
