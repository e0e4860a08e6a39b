"""Speed and fidelity against NVIDIA Dynamo's offline replay, on the same trace and step times.

Dynamo's replay steps every iteration of every worker in Rust; our kernel leaps between events. Both
are given 4 prefill and 2 decode workers, round-robin routing, the same requests and the same step
times. How fast each is and how far time to first token (TTFT) and inter-token latency (ITL) lie
apart is printed as a table and, last, as one line of JSON. docs/fidelity.md explains the rest.

Dynamo reads a table of prefill time over the tokens of a step, and of decode time over the KV
tokens and the mean context of a step. Ours is over batch, tokens and cached prefix, and over batch
and context. `one_surface` leaves of a profile what both can hold; `dynamo_table` samples it finely
into Dynamo's axes.

    make dynamo-venv bench-dynamo

Another interpreter that has benchmarks/dynamo_requirements.txt is named by
HRL_PLANNER_DYNAMO_PYTHON=/path/to/python; without one it says so and passes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agents.dynamo.client import DEFAULT_PYTHON, PYTHON_VARIABLE
from envs.simulation import Simulation
from hrl_planner.profile import WorkerProfile
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.trace import Trace

Floats = NDArray[np.float64]

PROFILE = "qwen3_32b__h200_sxm__tp2__vllm"
N_PREFILL, N_DECODE = 4, 2
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 8192
BANDWIDTH_GB_PER_S = 50.0
BLOCK_TOKENS = 512  # of the trace file; prompts are unique, so nothing is shared
UTILISATIONS = (0.3, 0.5, 0.7)
TIMED_UTILISATION = 0.5
WARM_UP_REQUESTS = 200

# Dynamo's decode axes: fine where the batches of this comparison lie, coarse up to the KV capacity.
KV_TOKENS = np.unique(
    np.r_[
        1.0, np.geomspace(16, 500, 60), np.linspace(500, 300_000, 600), np.linspace(3e5, 3e6, 200)
    ]
)
CONTEXT_TOKENS = np.unique(np.r_[np.linspace(16, 20_000, 500), np.linspace(2e4, 65_536, 50)])


@dataclass(frozen=True)
class Run:
    """What one simulator made of one trace.

    Attributes:
        ttft_ms: (N,), in any order.
        itl_ms: (N,), mean per request; NaN where only one token was asked for.
        seconds: processor time of each timed run.
    """

    ttft_ms: Floats
    itl_ms: Floats
    seconds: Floats

    def figures(self) -> dict[str, float]:
        """Return the figures the two simulators are compared by, ms."""
        return {
            "ttft_p50": float(np.percentile(self.ttft_ms, 50)),
            "ttft_p90": float(np.percentile(self.ttft_ms, 90)),
            "itl_mean": float(np.nanmean(self.itl_ms)),
        }


def one_surface(profile: WorkerProfile) -> WorkerProfile:
    """Reduce prefill times to those of one request without cached prefix, as Dynamo's table is.

    With a batch axis of one point, a step over n requests is looked up as one of their total.
    """
    return replace(
        profile,
        prefill_batch=profile.prefill_batch[:1],
        prefill_prefix_tokens=profile.prefill_prefix_tokens[:1],
        prefill_ms=profile.prefill_ms[:1, :, :1],
    )


def dynamo_table(profile: WorkerProfile) -> dict[str, Floats]:
    """Sample a profile into the arrays of Dynamo's `perf_data.npz`."""
    # Dynamo extrapolates beyond a table, our lookups hold its edge: repeat the first value.
    tokens = np.r_[1.0, profile.prefill_new_tokens]
    prefill_ms = profile.prefill_ms[0, :, 0]
    batch = np.clip(
        KV_TOKENS[:, None] / CONTEXT_TOKENS, profile.decode_batch[0], profile.decode_batch[-1]
    )
    itl = np.empty_like(batch)
    for column, context in enumerate(CONTEXT_TOKENS):
        over_batch = [
            np.interp(context, profile.decode_context_tokens, row) for row in profile.decode_ms
        ]
        itl[:, column] = np.interp(batch[:, column], profile.decode_batch, over_batch)
    return {
        "prefill_isl": tokens,
        "prefill_ttft_ms": np.r_[prefill_ms[0], prefill_ms],
        "decode_active_kv_tokens": KV_TOKENS,
        "decode_context_length": CONTEXT_TOKENS,
        "decode_itl": itl,
    }


def cluster(profile_path: Path, model: str, gpus: int, transfer: bool) -> ClusterSpec:
    """Return 4P+2D with nothing that Dynamo's replay lacks."""

    def pool(role: str, replicas: int) -> dict[str, Any]:
        return {
            "name": role,
            "role": role,
            "gpu_type": "GPU",
            "gpus_per_replica": gpus,
            "profile": str(profile_path),
            "min_replicas": replicas,
            "max_replicas": replicas,
            "startup": {"mean_s": 0},
            "price_per_gpu_hour": 1,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        }

    link: dict[str, Any] = {"bandwidth_gb_per_s": BANDWIDTH_GB_PER_S, "latency_ms": 0}
    return ClusterSpec.from_dict(
        {
            "name": "dynamo-4p2d",
            "model": model,
            "pools": [pool("prefill", N_PREFILL), pool("decode", N_DECODE)],
            "budget": {"gpus": {"GPU": gpus * (N_PREFILL + N_DECODE)}},
            "slo_classes": [
                {"name": "all", "ttft_ms": 1000, "itl_ms": 50, "assign": {"share": 1.0}}
            ],
            "router": {"kind": "round_robin"},
            "kv_transfer": link if transfer else {**link, "bytes_per_token": 0},
        }
    )


def poisson(n: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Poisson arrivals, log-normal lengths with a coefficient of variation of 1."""
    gaps = rng.exponential(1.0, n)
    return gaps, _lognormal(rng, n, 2000, 1.0, 16_000), _lognormal(rng, n, 250, 1.0, 2_000)


def azure_like(n: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Arrivals and lengths with the moments of the Azure 2023 conversation trace."""
    gaps = rng.gamma(1 / 1.1**2, 1.1**2, n)
    return gaps, _lognormal(rng, n, 1155, 1.28, 14_050), _lognormal(rng, n, 211, 1.04, 1_000)


def _lognormal(rng: np.random.Generator, n: int, mean: float, cv: float, high: int) -> Floats:
    variance = np.log1p(cv**2)
    drawn = mean * np.exp(np.sqrt(variance) * rng.standard_normal(n) - variance / 2)
    return np.asarray(np.clip(np.rint(drawn), 1, high), np.float64)


TRACES: dict[str, Callable[[int, np.random.Generator], tuple[Floats, Floats, Floats]]] = {
    "poisson": poisson,
    "azure-like": azure_like,
}


def capacity_rps(profile: WorkerProfile, isl: Floats, osl: Floats) -> float:
    """Return the rate at which the first of the two pools has every worker's steps full."""
    full = MAX_NUM_BATCHED_TOKENS
    prefill_ms_per_token = profile.prefill_step_ms(1, full) / full
    prefill = N_PREFILL / (isl.mean() * prefill_ms_per_token * 1e-3)
    context = float(np.average(isl + osl / 2, weights=osl))
    fits = min(MAX_NUM_SEQS, profile.kv_capacity_tokens / context)
    decode = N_DECODE * fits / (osl.mean() * profile.decode_step_ms(fits, context) * 1e-3)
    return float(min(prefill, decode))


def make_trace(
    name: str, n: int, seed: int, profile: WorkerProfile, utilisation: float, tick_s: float = 0.0
) -> Trace:
    """Draw a trace whose mean rate is a share of the cluster's capacity.

    With a tick, arrivals are rounded down to whole ticks, as in logs with coarse time stamps.
    """
    gaps, isl, osl = TRACES[name](n, np.random.default_rng(seed))
    gaps[0] = 0.0  # Dynamo counts time from the first arrival
    arrival_s = np.cumsum(gaps / gaps.mean()) / (utilisation * capacity_rps(profile, isl, osl))
    if tick_s:
        arrival_s = np.floor(arrival_s / tick_s) * tick_s
    return Trace(name, arrival_s, isl.astype(np.int32), osl.astype(np.int32), float(arrival_s[-1]))


def run_ours(spec: ClusterSpec, trace: Trace, timings: int) -> Run:
    """Simulate the trace with our kernel; a timed run is everything from trace to columns."""
    seconds = []
    for _ in range(max(1, timings)):
        start = time.process_time()
        simulation = Simulation(spec, trace)
        simulation.finish()
        result = simulation.result()
        seconds.append(time.process_time() - start)
    itl_ms = np.where(trace.osl_tokens > 1, result.itl_s * 1e3, np.nan)
    return Run(result.ttft_s * 1e3, itl_ms, np.array(seconds[:timings]))


def run_dynamo(
    python: str, spec: ClusterSpec, table: Path, trace: Trace, timings: int, scratch: Path
) -> Run:
    """Replay the trace through Dynamo under its own interpreter."""
    job_path, out_path, trace_path = (scratch / name for name in ("job.json", "out.npz", "t.jsonl"))
    _write_mooncake(trace, trace_path)
    profile = spec.profiles()[0]
    engine = {
        "backend": "vllm",
        "max_num_seqs": MAX_NUM_SEQS,
        "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        "block_size": spec.kv_block_tokens,
        "enable_prefix_caching": False,
        "num_gpu_blocks": profile.kv_capacity_tokens // spec.kv_block_tokens,
        "timing_model": {
            "type": "external",
            "provider": "dynamo_profile",
            "config": {"path": str(table)},
        },
    }
    if spec.kv_bytes_per_token:
        engine["kv_transfer_bandwidth"] = spec.kv_transfer.bandwidth_gb_per_s
        engine["kv_transfer_bytes_per_token"] = spec.kv_bytes_per_token
    job = {
        "trace": str(trace_path),
        "block_tokens": BLOCK_TOKENS,
        "prefill": {**engine, "worker_type": "prefill"},
        "decode": {**engine, "worker_type": "decode"},
        "n_prefill": N_PREFILL,
        "n_decode": N_DECODE,
        "timings": timings,
    }
    job_path.write_text(json.dumps(job))
    script = Path(__file__).with_name("dynamo_replay.py")
    subprocess.run([python, str(script), str(job_path), str(out_path)], check=True)
    with np.load(out_path) as out:
        return Run(out["ttft_ms"], out["itl_ms"], out["cpu_s"])


def _write_mooncake(trace: Trace, path: Path) -> None:
    blocks = -(-trace.isl_tokens // BLOCK_TOKENS)
    ends = np.cumsum(blocks)
    with path.open("w") as file:
        for arrival_s, isl, osl, n, end in zip(
            trace.arrival_s, trace.isl_tokens, trace.osl_tokens, blocks, ends, strict=True
        ):
            row = {
                "timestamp": float(arrival_s) * 1e3,
                "input_length": int(isl),
                "output_length": int(osl),
                "hash_ids": list(range(int(end - n), int(end))),
            }
            file.write(json.dumps(row) + "\n")


def find_dynamo() -> str | None:
    """Return an interpreter that can import Dynamo's runtime, if there is one."""
    for python in (os.environ.get(PYTHON_VARIABLE), DEFAULT_PYTHON, sys.executable):
        if python and Path(python).exists():
            probe = [python, "-c", "import dynamo._core, dynamo.mocker.config"]
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return str(python)
    return None


def compare(args: argparse.Namespace, python: str, console: Console) -> dict[str, float]:
    """Run every case on both sides, print the table, and return the figures."""
    table = Table(title=f"{PROFILE}, {N_PREFILL}P+{N_DECODE}D, {args.requests} requests")
    for heading in ("trace", "util.", "rps", "figure", "Dynamo ms", "ours ms", "error"):
        table.add_column(heading, justify="left" if heading in ("trace", "figure") else "right")
    worst: dict[str, float] = {}
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        profile_path, perf_path = scratch / "profile.npz", scratch / "perf_data.npz"
        full = WorkerProfile.load(PROFILE)
        if args.kv_tokens:
            full = replace(full, kv_capacity_tokens=args.kv_tokens)
        profile = one_surface(full)
        (full if args.full_surface else profile).save(profile_path)
        np.savez(perf_path, allow_pickle=False, **dynamo_table(profile))
        spec = cluster(profile_path, profile.model, profile.tp, not args.no_transfer)
        run_ours(spec, make_trace("poisson", WARM_UP_REQUESTS, 0, profile, 0.5), 1)  # compile
        for name in TRACES:
            for utilisation in args.utilisation:
                trace = make_trace(
                    name, args.requests, args.seed, profile, utilisation, args.tick_s
                )
                timings = args.timings if utilisation == TIMED_UTILISATION else 0
                theirs = run_dynamo(python, spec, perf_path, trace, timings, scratch)
                ours = run_ours(spec, trace, timings)
                if timings:
                    speeds = [len(trace) / np.median(run.seconds) for run in (theirs, ours)]
                    ratios.append(speeds[1] / speeds[0])
                    console.print(
                        f"{name}: Dynamo {speeds[0]:,.0f}, ours {speeds[1]:,.0f} requests per "
                        f"processor second, ratio {ratios[-1]:.0f} (medians of {timings})"
                    )
                ours_ms, theirs_ms = ours.figures(), theirs.figures()
                for figure, value in theirs_ms.items():
                    error = ours_ms[figure] / value - 1
                    if utilisation < 0.8:
                        key = f"{figure}_err"
                        worst[key] = max(worst.get(key, 0.0), abs(error))
                    table.add_row(
                        name,
                        f"{utilisation:.0%}",
                        f"{len(trace) / trace.duration_s:.1f}",
                        figure,
                        f"{value:.2f}",
                        f"{ours_ms[figure]:.2f}",
                        f"{error:+.2%}",
                    )
    console.print(table)
    return {**({"dynamo_speed_ratio": min(ratios)} if ratios else {}), **worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--timings", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--utilisation", type=float, nargs="+", default=list(UTILISATIONS))
    parser.add_argument("--no-transfer", action="store_true", help="KV moves in no time")
    parser.add_argument(
        "--full-surface", action="store_true", help="keep what only our side can express"
    )
    parser.add_argument("--tick-s", type=float, default=0.0, help="resolution of arrival times")
    parser.add_argument("--kv-tokens", type=int, help="KV capacity of a worker, both sides")
    args = parser.parse_args()
    console = Console()
    python = find_dynamo()
    if python is None:
        console.print(
            "bench-dynamo skipped: no interpreter with ai-dynamo. `make dynamo-venv` makes one, "
            f"{PYTHON_VARIABLE}=/path/to/python names another."
        )
        return
    figures = compare(args, python, console)
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
