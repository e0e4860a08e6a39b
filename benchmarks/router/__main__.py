"""`make bench-router`: everything about the router, and one JSON object as the last line.

A part that needs what is not installed here (Dynamo, other routers) says so and counts as absent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.router import (
    attainment,
    decision,
    dynamo_path,
    faults,
    ours,
    peers,
    picker,
    same_load,
    streams,
    upstream,
)

Figures = dict[str, Any]


def _decision(args: argparse.Namespace) -> Figures:
    found = decision.main()
    return {"decision_p50_ms": found.ids_p50_ms, "decision_p99_ms": found.ids_p99_ms}


def _picker(args: argparse.Namespace) -> Figures:
    found = picker.main()
    return {"picker_rps_per_core": found.picker_rps_per_core, "router_rps": found.rps}


def _streams(args: argparse.Namespace) -> Figures:
    found = streams.main()
    return {
        "stream_vs_envoy_alone": found.ratio,
        "picker_streaming_share": found.picker_streaming_share,
    }


def _dynamo(args: argparse.Namespace) -> Figures:
    ours = same_load.main()
    theirs = dynamo_path.measure()
    if isinstance(theirs, str):
        print(f"Dynamo's path: {theirs}")
        return {"dynamo_path_ratio": None}
    best = theirs.saturated
    print(
        f"Dynamo's path (ai-dynamo {theirs.version}): {best.requests_rps:.1f} requests/s, "
        f"{best.tokens_per_s:,.0f} tokens/s, {best.failed} failed, "
        f"{best.stack_ms_per_request:.1f} ms of processor per request, "
        f"{best.engines_ms_per_request:.1f} of it the engines'"
    )
    return {
        "dynamo_path_ratio": ours.requests_rps / best.requests_rps,
        "dynamo_path_cpu_ratio": best.stack_ms_per_request / ours.stack_ms_per_request,
        "dynamo_path_routers_cpu_ratio": best.routers_ms_per_request / ours.routers_ms_per_request,
        "dynamo_path_rps": best.requests_rps,
        "same_load_rps": ours.requests_rps,
    }


def _peers(args: argparse.Namespace) -> Figures:
    with upstream.running(2, 0.0) as addresses:
        found: dict[str, peers.Peer | str] = {"hrl-planner": asyncio.run(ours.measure(addresses))}
        found |= peers.measure(addresses)
    figures: Figures = {}
    for name, peer in found.items():
        if isinstance(peer, str):
            print(f"{name}: {peer}")
            continue
        print(
            f"{name} {peer.version}: {peer.short_rps:,.0f} short requests/s, "
            f"{peer.streams.tokens_per_s:,.0f} tokens/s in 1,000 streams, "
            f"{peer.closed.requests_rps:.1f} requests/s of 1,000/64 tokens"
        )
        figures[f"{name}_short_rps"] = peer.short_rps
    return figures


def _attainment(args: argparse.Namespace) -> Figures:
    found = attainment.main()
    ranked = sorted(found, key=lambda row: -row.measured)
    return {
        "attainment_gap_points": max(row.gap_points for row in found),
        "attainment_order_agrees": ranked == sorted(found, key=lambda row: -row.simulated),
        "attainment": {row.rule: row.measured for row in found},
    }


def _faults(args: argparse.Namespace) -> Figures:
    reports = faults.main(args.churn_minutes)
    return {"lost_to_faults": {row.name: row.lost for row in reports}}


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "decision": _decision,
    "picker": _picker,
    "streams": _streams,
    "dynamo": _dynamo,
    "peers": _peers,
    "attainment": _attainment,
    "faults": _faults,
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument(
        "--churn-minutes", type=float, default=0.0, help="of workers being replaced, with faults"
    )
    args = parser.parse_args()
    figures: Figures = {}
    for name in args.only or PARTS:
        print(f"--- {name}", flush=True)
        figures |= PARTS[name](args)
    sys.stdout.flush()
    print(json.dumps(figures, default=float))


if __name__ == "__main__":
    main()
