"""Does the budget hold while everything is broken on purpose, and how long does recovery take?

    python -m benchmarks.cluster.chaos --minutes 30 [--seed N] [--together] [--keep FOLDER]

A real control plane, pods that answer for workers, two processes of every planner, a demand that
goes up and down and shifts between prefill and decode every phase, and a monkey (`faults`). In the
first part of a phase the monkey also does what people do; the rest of it is for faults alone, so
that what planners change then is the faults' doing (`flaps`). An observer counts GPUs at every
revision of the store. A table, and one JSON object as the last line; status 1 if the budget did
not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.cluster.faults import Monkey, Record
from benchmarks.cluster.field import Clocks, Field, kubelet, quick
from benchmarks.cluster.field import field as make_field
from benchmarks.cluster.flaps import Flap, Span, flaps, judged
from benchmarks.cluster.observer import Observer, Scaling
from benchmarks.cluster.planners import Planners
from benchmarks.cluster.store import wait_until
from benchmarks.cluster.workers import Demand
from hrl_planner.localcluster import ControlPlane
from hrl_planner.spec import ClusterSpec

POLICY = {
    "allocator": "lp:hold_s=6,idle_s=15,trend=0",
    "scaler": "rule:up_cooldown_s=2,down_cooldown_s=6",
}
# Machines have more GPUs than any budget: it is for planners to keep to it, not for the scheduler.
MACHINES = {"H100": 16, "L40S": 16}
# From next to nothing to more than the budget can carry, on prompts or on answers.
DEMANDS = (
    Demand(10, 1000, 100),
    Demand(120, 4000, 64),
    Demand(200, 500, 500),
    Demand(60, 2000, 150),
    Demand(300, 500, 200),
)
# Bars of recovery, seconds.
LEADER_BAR_S, API_BAR_S = 20.0, 10.0


@dataclass(frozen=True)
class Pace:
    """How a run goes.

    Attributes:
        phase_s: between changes of demand.
        acts: what people do at the begin of a phase, before there are faults alone.
        calm_s: after an act or a change of demand planners have come to rest.
        pause_s: longest time between two faults.
    """

    phase_s: float = 75.0
    acts: int = 2
    calm_s: float = 20.0
    pause_s: float = 4.0


@dataclass
class Run:
    """What came of it."""

    seconds: float
    observer: Observer
    records: list[Record]
    demands: list[Span]
    clocks: Clocks
    at_rest: bool = False
    flaps: list[Flap] = field(default_factory=list)
    judged: int = 0


@contextlib.contextmanager
def stage(
    plane: ControlPlane,
    spec: ClusterSpec,
    clocks: Clocks,
    folder: Path,
    *,
    together: bool,
    site: str = "field",
) -> Iterator[tuple[Field, Planners, Observer]]:
    """Set up everything, with planners that have begun to act; a kubelet must run already."""
    observer = Observer(spec)
    pools = [pool.name for pool in spec.pools]
    with (
        make_field(
            plane, spec, clocks, POLICY, site=site, on_revision=observer.on_revision
        ) as made,
        Planners(
            spec.name, pools, made.namespace, plane.kubeconfig, folder, together=together
        ) as planners,
        observer,
    ):
        if not wait_until(lambda: all(map(planners.leader, planners.ids)), 120.0):
            words = "\n".join(planners.log(planners.replicas_of(each)[0]) for each in planners.ids)
            raise RuntimeError(f"not every planner has begun to act:\n{words}")
        yield made, planners, observer


def torment(
    made: Field,
    planners: Planners,
    observer: Observer,
    seconds: float,
    random: Random,
    pace: Pace,
    *,
    kinds: Sequence[str] = (),
    say: Any = print,
) -> Run:
    """Break things for a while, then let the cluster come to rest.

    Demand changes at least once, however long the first fault takes: what comes first may be what
    the cluster can carry as it is.

    Args:
        made: the cluster of a stage.
        planners: of it.
        observer: of it.
        seconds: how long.
        random: what is chosen.
        pace: phases.
        kinds: of faults and acts; all there are where empty.
        say: told of progress, a line at a time.
    """
    monkey = Monkey(made, planners, observer, random)
    deal_fault = _deal([k for k in monkey.faults if not kinds or k in kinds], random)
    deal_act = _deal([k for k in monkey.acts if not kinds or k in kinds], random)
    began_s = time.time()
    demands: list[Span] = []
    phase_end_s, acts = 0.0, 0
    deal_demand = _deal(list(DEMANDS), random)
    while (now_s := time.time()) < began_s + seconds or len(demands) < 2:
        if now_s > phase_end_s:
            made.workers.demand = next(deal_demand)
            demands.append(Span("demand", now_s, now_s + pace.calm_s))
            phase_end_s, acts = now_s + pace.phase_s, pace.acts
            say(f"{now_s - began_s:6.0f} s  demand: {made.workers.demand}")
        record = monkey.do(next(deal_act if acts else deal_fault))
        acts = max(0, acts - 1)
        say(f"{record.from_s - began_s:6.0f} s  {_words(record)}  |  {_state(made, observer)}")
        if made.store.error is not None:
            raise RuntimeError("the store is not followed any more") from made.store.error
        time.sleep(random.uniform(1.0, pace.pause_s))
    at_rest = wait_until(lambda: _at_rest(made), 60.0, 0.5)
    run = Run(time.time() - began_s, observer, monkey.records, demands, made.clocks, at_rest)
    _judge_flaps(run, set(monkey.faults), pace)
    return run


def _deal(kinds: Sequence[Any], random: Random) -> Iterator[Any]:
    """Yield kinds in random order, each as often as the others."""
    while True:
        yield from random.sample(kinds, len(kinds))


def _at_rest(made: Field) -> bool:
    """Whether quotas are the plan's, and targets and pods keep to them."""
    status = made.group()["status"]
    within = {c["type"]: c["status"] for c in status["conditions"]}["WithinBudget"] == "True"
    quotas = {name: made.pool(name)["spec"].get("quota") for name in made.pool_names()}
    targets, holding = made.targets(), made.holding()
    kept = all(targets[n] <= (q or 0) and holding[n] <= (q or 0) for n, q in quotas.items())
    return within and kept and not status.get("waits") and status["planned"] == quotas


def _judge_flaps(run: Run, are_faults: set[str], pace: Pace) -> None:
    faults = [Span(r.kind, r.from_s, r.to_s) for r in run.records if r.kind in are_faults]
    acts = [
        Span(r.kind, r.from_s, r.to_s + pace.calm_s)
        for r in run.records
        if r.kind not in are_faults
    ]
    spans = judged(faults, [*run.demands, *acts], run.clocks.local_s)
    run.judged, run.flaps = len(spans), flaps(spans, run.observer.scalings)


def _words(record: Record) -> str:
    parts = [f"{record.kind} ({record.to_s - record.from_s:.1f} s)"]
    if record.leaders_s:
        parts.append(f"new leader acted after {max(record.leaders_s.values()):.1f} s")
    if record.api_s:
        parts.append(f"all planners acted {max(record.api_s.values()):.1f} s after its return")
    if record.note:
        parts.append(record.note)
    return "; ".join(parts)


def _state(made: Field, observer: Observer) -> str:
    counts = observer.counts
    return (
        f"holding {'/'.join(map(str, made.holding().values()))}, {counts.samples} samples, "
        f"{counts.over_revisions} over"
    )


# ---- the report


def _spread(values: Sequence[float], bar_s: float) -> dict[str, Any]:
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "p50": round(statistics.median(values), 2),
        "max": round(max(values), 2),
        "over_bar": sum(value > bar_s for value in values),
    }


def figures(run: Run, spec: ClusterSpec) -> dict[str, Any]:
    """Return the figures of a run as plain data."""
    counts, records = run.observer.counts, run.records
    gpus = {pool.name: pool.gpus_per_replica for pool in spec.pools}
    done = [r for r in records if not r.note.startswith("not done")]
    leaders = [s for r in done if r.kind != _BOTH for s in r.leaders_s.values()]
    both = [s for r in done if r.kind == _BOTH for s in r.leaders_s.values()]
    return {
        "seconds": round(run.seconds),
        "samples": counts.samples,
        "revisions": counts.revisions,
        "violations": counts.over_revisions + counts.over_samples,
        "states": len(counts.states),
        "most_held": counts.most,
        "faults": dict(Counter(r.kind for r in done)),
        "not_done": len(records) - len(done),
        "never_recovered": sum(
            r.note.startswith("no round") or "still there" in r.note for r in done
        ),
        "scalings": len(run.observer.scalings),
        "gpus_moved": sum(_moved(s, gpus) for s in run.observer.scalings),
        "samples_during": dict(counts.during),
        "above_by_outside_acts": counts.outside,
        "rises_above_a_lowered_budget": counts.above_lowered,
        "leader_recovery_s": _spread(leaders, LEADER_BAR_S),
        "both_replicas_recovery_s": _spread(both, LEADER_BAR_S),
        "api_recovery_s": _spread([max(r.api_s.values()) for r in done if r.api_s], API_BAR_S),
        "flaps": len(run.flaps),
        "faults_judged_for_flaps": run.judged,
        "came_to_rest": run.at_rest,
    }


_BOTH = "leader and standby killed"


def _moved(scaling: Scaling, gpus: dict[str, int]) -> int:
    return abs(scaling.after - scaling.before) * gpus[scaling.pool]


def table(run: Run) -> str:
    """Return what each kind of fault did, as text."""
    rows = [f"{'what':34} {'times':>5} {'median s':>9} {'max s':>7}  measured"]
    for kind in dict.fromkeys(r.kind for r in run.records):
        own = [r for r in run.records if r.kind == kind and not r.note.startswith("not done")]
        leaders = [s for r in own for s in r.leaders_s.values()]
        api = [max(r.api_s.values()) for r in own if r.api_s]
        values = leaders or api or [r.to_s - r.from_s for r in own]
        what = "until it was done"
        if leaders:
            what = f"kill to the new leader's first round (bar {LEADER_BAR_S:g} s)"
        elif api:
            what = f"return to every planner's next round (bar {API_BAR_S:g} s)"
        if values:
            spread = f"{statistics.median(values):9.1f} {max(values):7.1f}"
            rows.append(f"{kind:34} {len(own):5} {spread}  {what}")
    return "\n".join(rows)


def _write(run: Run, folder: Path) -> None:
    for index, violation in enumerate(run.observer.violations):
        (folder / f"violation-{index}.json").write_text(violation.to_json())
    for flap in run.flaps:
        print(f"flap: {flap}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spec", default="small", help="a shipped spec or a file")
    parser.add_argument(
        "--together", action="store_true", help="`plan all` in two processes, not two per planner"
    )
    parser.add_argument("--only", action="append", default=[], help="this fault or act; repeatable")
    parser.add_argument("--keep", type=Path, help="folder for logs and violations")
    args = parser.parse_args()
    clocks = Clocks()
    spec = quick(args.spec, clocks)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"logs: {folder}", flush=True)
    with (
        ControlPlane.start(folder / "plane") as plane,
        kubelet(plane, MACHINES),
        stage(plane, spec, clocks, folder, together=args.together) as (made, planners, observer),
    ):
        run = torment(
            made, planners, observer, 60.0 * args.minutes, Random(args.seed), Pace(),
            kinds=args.only, say=lambda line: print(line, flush=True),
        )  # fmt: skip
    print(table(run))
    _write(run, folder)
    found = figures(run, spec)
    print(json.dumps(found))
    sys.exit(1 if found["violations"] else 0)


if __name__ == "__main__":
    main()
