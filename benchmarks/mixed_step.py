"""Check the step time of aggregated workers against AISimulate's model of mixed steps.

When prompt chunks and running requests share a step, our kernel looks up the chunks' time with the
running requests' tokens added to theirs, and adds the running requests' attention: decode(B, C)
minus decode(1, C). Dynamo's profile timing adds prefill and decode in full. AISimulate computes a
mixed step operator by operator; this prints how far each rule is from it.

Runs under an interpreter with `aisimulate` (benchmarks/dynamo_requirements.txt):

    python benchmarks/mixed_step.py
"""

from __future__ import annotations

import numpy as np
from aisimulate_core.sdk import EngineHandle
from aisimulate_core.sdk.perf_database import get_latest_database_version

MODEL, SYSTEM, BACKEND = "Qwen/Qwen3-32B", "h200_sxm", "vllm"
PROMPTS = ((1, 128), (1, 512), (1, 2048), (4, 2048), (1, 8192))  # requests, tokens of each
RUNNING = (1, 8, 32, 64, 128, 256)


def main() -> None:
    version = get_latest_database_version(SYSTEM, BACKEND)
    engine = EngineHandle.compile(MODEL, SYSTEM, BACKEND, backend_version=version, tp_size=1)
    print(f"{MODEL}, {SYSTEM} TP1, {BACKEND} {version}")
    print("| prompts x tokens | running | mixed ms | with tokens | without | plain sum |")
    print("|---|---|---|---|---|---|")
    errors = []
    for n, isl in PROMPTS:
        prefill_ms = engine.predict_prefill_latency(n, isl, 0)
        alone_ms = engine.predict_decode_latency(1, isl, 2)
        for running in RUNNING:
            mixed_ms = engine.mixed_step_latency(n * isl, running, isl, 2)
            decode_ms = engine.predict_decode_latency(running, isl, 2)
            attention_ms = max(0.0, decode_ms - alone_ms)
            with_tokens_ms = engine.predict_prefill_latency(n, isl + running // n, 0)
            rules = (
                with_tokens_ms + attention_ms,
                prefill_ms + attention_ms,
                prefill_ms + decode_ms,
            )
            errors.append([rule / mixed_ms - 1 for rule in rules])
            cells = " | ".join(f"{error:+.1%}" for error in errors[-1])
            print(f"| {n} x {isl} | {running} | {mixed_ms:.1f} | {cells} |")
    size = np.abs(errors)
    print("| mean, absolute | | | " + " | ".join(f"{x:.1%}" for x in size.mean(0)) + " |")
    print("| largest | | | " + " | ".join(f"{x:.1%}" for x in size.max(0)) + " |")


if __name__ == "__main__":
    main()
