"""The other side of `bench_dynamo`: replay one trace through Dynamo's offline simulator.

Runs under an interpreter that has `ai-dynamo` (benchmarks/dynamo_requirements.txt), which need not
be the project's own, so this file imports nothing of the project. It is given a JSON job and an
output path; the engine description in the job goes to Dynamo as it is.

    python benchmarks/dynamo_replay.py JOB.json OUT.npz

The job: `trace` (Mooncake JSONL), `block_tokens`, `prefill` and `decode` (engine arguments),
`n_prefill`, `n_decode`, `timings` (how often to time the run). OUT holds, per request in no
particular order, `ttft_ms` and `itl_ms` (NaN for a single token), and `cpu_s`, the processor time
of each timed call. Reading the trace file is in it: about 3 %.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("DYN_LOG", "error")


def main(job_path: str, out_path: str) -> None:
    from dynamo._core import run_mocker_trace_replay
    from dynamo.mocker.config import normalize_mocker_config

    job = json.loads(Path(job_path).read_text())
    engines = {
        f"{role}_engine_args": normalize_mocker_config({"startup_time": 0.0, "engine": job[role]})
        for role in ("prefill", "decode")
    }

    def replay(capture: bool) -> Any:
        return run_mocker_trace_replay(
            [job["trace"]],
            **engines,
            num_prefill_workers=job["n_prefill"],
            num_decode_workers=job["n_decode"],
            router_mode="round_robin",
            trace_format="mooncake",
            trace_block_size=job["block_tokens"],
            capture_per_request=capture,
        )

    requests = replay(True).per_request
    columns = {
        key: np.array([request[key] for request in requests], np.float64)  # None becomes NaN
        for key in ("ttft_ms", "itl_ms")
    }
    cpu_s = np.zeros(job["timings"])
    for run in range(job["timings"]):
        start = time.process_time()
        replay(False)
        cpu_s[run] = time.process_time() - start
    np.savez(out_path, **columns, cpu_s=cpu_s)


if __name__ == "__main__":
    main(*sys.argv[1:3])
