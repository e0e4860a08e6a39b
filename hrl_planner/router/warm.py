"""Compiles the rules before the first request, which would otherwise wait for it.

The compiled code lies in the cache on disk (built into the image), so this takes a moment; a first
run after an update takes about a minute.
"""

from __future__ import annotations

from hrl_planner.router.chooser import Ask, Chooser
from hrl_planner.router.classes import Classes, Targets
from hrl_planner.router.discovery import Snapshot, Worker
from hrl_planner.router.fleet import Fleet
from hrl_planner.router.kv import KvIndex, PromptBlocks
from hrl_planner.spec import ClusterSpec


def warm(spec: ClusterSpec) -> None:
    """Make every kind of choice once, on a fleet of one worker per pool."""
    fleet = Fleet(spec, Classes(spec))
    workers = tuple(Worker(pool.name, pool.name, "127.0.0.1:1") for pool in spec.pools)
    fleet.apply(Snapshot(workers), 0.0)
    chooser = Chooser(fleet, KvIndex(spec.kv_block_tokens))
    ask = Ask(PromptBlocks([1], 32, spec.kv_block_tokens), 4, Targets(0, 1.0, 1.0, 1.0), 0.0)
    chooser.look_up(ask, 0.0)
    chooser.prefill(ask, 0.0, shed=True, wait=True)
    chooser.decode(ask)
    chooser.best_case_ttft_s(ask)
    for place in fleet:
        chooser.second(place.slot, ask)
        chooser.keeps_session(place, ask, 0.0)
        chooser.predicted_itl_s(place.slot, ask)
