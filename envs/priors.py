"""The planners whose plans agents improve on, for a batch of episodes, here or in other processes.

An LP decision takes longer than the simulation between two of them, and Python takes them one after
the other. With processes each of them keeps the planners of its share of the places; observations
go there and plans come back, so that a second core plans while the first does. The plans are the
same: a planner's state lives in one process from reset to the end of its episode.
"""

from __future__ import annotations

import multiprocessing
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.policy import (
    Listener,
    Plan,
    PlanContext,
    Policy,
    Replanner,
    Terms,
)
from hrl_planner.planner.registry import make_policy


class Priors:
    """One planner per place, in this process.

    Args:
        text: the policy, as the registry spells it.
    """

    def __init__(self, text: str) -> None:
        """See the class."""
        self._text = text
        self._policies: dict[int, Policy] = {}

    def reset(self, place: int, context: PlanContext) -> None:
        """Prepare a place's planner for a new episode."""
        if place not in self._policies:
            self._policies[place] = make_policy(self._text)
        self._policies[place].reset(context)

    def decide(self, observations: Mapping[int, ClusterObservation]) -> dict[int, Plan]:
        """Return the plans for what is seen at some places."""
        return {place: self._policies[place].decide(seen) for place, seen in observations.items()}

    def replan(self, terms: Mapping[int, Terms]) -> dict[int, Plan | None]:
        """Let the planners of some places plan again on other terms, see `Replanner`."""
        plans: dict[int, Plan | None] = {}
        for place, others in terms.items():
            policy = self._policies[place]
            if not isinstance(policy, Replanner):
                raise PolicyError(f"policy {self._text}: cannot plan again on other terms")
            plans[place] = policy.replan(others)
        return plans

    def listen(self, observations: Mapping[int, ClusterObservation]) -> dict[int, Plan | None]:
        """Let the planners of some places see what happens between decisions, see `Listener`."""
        heard: dict[int, Plan | None] = {}
        for place, seen in observations.items():
            policy = self._policies[place]
            heard[place] = policy.listen(seen) if isinstance(policy, Listener) else None
        return heard


class ProcessPriors:
    """The same, spread over processes by place.

    Args:
        text: the policy, as the registry spells it.
        processes: how many; they end with this object.
    """

    def __init__(self, text: str, processes: int) -> None:
        """See the class."""
        # Spawned: a fork after numba's threads have started does not survive.
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        for _ in range(processes):
            here, there = context.Pipe()
            context.Process(target=_serve, args=(text, there), daemon=True).start()
            there.close()
            self._pipes.append(here)
        self._finalizer = weakref.finalize(self, _close, self._pipes)

    def reset(self, place: int, context: PlanContext) -> None:
        """Prepare a place's planner for a new episode."""
        self._pipes[place % len(self._pipes)].send(("reset", (place, context)))

    def decide(self, observations: Mapping[int, ClusterObservation]) -> dict[int, Plan]:
        """Return the plans for what is seen at some places."""
        plans: dict[int, Plan] = self._ask("decide", observations)
        return plans

    def listen(self, observations: Mapping[int, ClusterObservation]) -> dict[int, Plan | None]:
        """Let the planners of some places see what happens between decisions, see `Listener`."""
        heard: dict[int, Plan | None] = self._ask("listen", observations)
        return heard

    def replan(self, terms: Mapping[int, Terms]) -> dict[int, Plan | None]:
        """Let the planners of some places plan again on other terms, see `Replanner`."""
        plans: dict[int, Plan | None] = self._ask("replan", terms)
        return plans

    def close(self) -> None:
        """End the processes."""
        self._finalizer()

    def _ask(self, what: str, words: Mapping[int, Any]) -> dict[int, Any]:
        shares: list[dict[int, Any]] = [{} for _ in self._pipes]
        for place, word in words.items():
            shares[place % len(shares)][place] = word
        asked = [(pipe, share) for pipe, share in zip(self._pipes, shares, strict=True) if share]
        for pipe, share in asked:
            pipe.send((what, share))
        answers: dict[int, Any] = {}
        for pipe, _ in asked:
            answer = pipe.recv()
            if isinstance(answer, Exception):
                raise answer
            answers |= answer
        return answers


def _serve(text: str, pipe: Connection) -> None:
    """Hold planners and answer until the other end closes."""
    priors = Priors(text)
    trouble: Exception | None = None  # of a reset, which nobody waits for: the next answer
    while True:
        try:
            what, message = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if what == "reset":
                priors.reset(*message)
            else:
                pipe.send(getattr(priors, what)(message) if trouble is None else trouble)
        except Exception as error:
            if what == "reset":
                trouble = error
            else:
                pipe.send(error)


def _close(pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.close()
