"""What a streamed token costs a mock engine: tokens per CPU second with 64 and with 256 streams.

    python -m benchmarks.bench_mock_engine

One engine process, one client process (this one) that reads every stream to its end. At `paced` the
engine keeps its profile's time and the figure is tokens / CPU seconds of the engine process; at
`flat out` every step is over at once, and tokens / wall seconds is what one process can do at most,
sharing the machine with its client. `late` is how much longer than the profile's step the gap
between two tokens of a stream was, as the client saw it. Prints a table and, last, a line of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import uvloop

from benchmarks.router.processes import cpu_s

PROFILE = "llama31_8b__h100_sxm__tp1__vllm"
STREAMS = (64, 256)
OSL = 512


class Reader(asyncio.Protocol):
    """One streamed request; notes when each token came."""

    def __init__(self, request: bytes, ended: asyncio.Future[None]) -> None:
        self._request = request
        self._ended = ended
        self.times: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Note the tokens."""
        tokens = data.count(b'"text":')
        if tokens:
            self.times.extend([time.perf_counter()] * tokens)
        if b"[DONE]" in data:
            self._transport.close()
            self._ended.set_result(None)


async def _load(port: int, streams: int) -> list[list[float]]:
    body = json.dumps({"prompt": "a b c d", "max_tokens": OSL, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    loop = asyncio.get_running_loop()
    readers = []
    for _ in range(streams):
        reader = Reader(request, loop.create_future())
        await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", port)
        readers.append(reader)
    await asyncio.gather(*(reader._ended for reader in readers))
    assert all(len(reader.times) == OSL for reader in readers)
    return [reader.times for reader in readers]


def _step_s(streams: int, speed: float) -> float:
    from hrl_planner.profile import WorkerProfile

    return 1e-3 * WorkerProfile.load(PROFILE).decode_step_ms(streams, 256) / speed


def _run(streams: int, speed: float) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "hrl_planner.cli", "mock-engine", "--profile", PROFILE),
        *("--port", "0", "--speed", str(speed)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as engine:
        try:
            assert engine.stdout is not None
            port = json.loads(engine.stdout.readline())["port"]
            uvloop.run(_load(port, 4))  # connections, code paths
            used_s, wall_s = cpu_s(engine.pid), time.perf_counter()
            times = uvloop.run(_load(port, streams))
            used_s, wall_s = cpu_s(engine.pid) - used_s, time.perf_counter() - wall_s
        finally:
            engine.terminate()
    gaps = sorted(b - a for row in times for a, b in itertools.pairwise(row))
    step_s = _step_s(streams, speed)
    return {
        "tokens_per_s": round(streams * OSL / wall_s),
        "cores": round(used_s / wall_s, 3),
        "tokens_per_core_s": round(streams * OSL / used_s),
        "late_p50_ms": round(1e3 * (statistics.median(gaps) - step_s), 2),
        "late_p99_ms": round(1e3 * (gaps[int(0.99 * len(gaps))] - step_s), 2),
    }


def main() -> dict[str, int]:
    """Measure, print, and return the figures of `make bench`."""
    figures = {}
    print(f"{'streams':>8} {'pace':>9} {'tokens/s':>9} {'cores':>6} {'tokens/core s':>14}  late ms")
    for streams in STREAMS:
        for pace, speed in (("paced", 1.0), ("flat out", 1e6)):
            run = _run(streams, speed)
            late = f"p50 {run['late_p50_ms']}, p99 {run['late_p99_ms']}" if speed == 1.0 else ""
            print(
                f"{streams:>8} {pace:>9} {run['tokens_per_s']:>9,} {run['cores']:>6} "
                f"{run['tokens_per_core_s']:>14,}  {late}"
            )
            name = f"mock_engine_{streams}_streams_{pace.replace(' ', '_')}"
            figures[f"{name}_tokens_per_core_s"] = run["tokens_per_core_s"]
    return figures


if __name__ == "__main__":
    print(json.dumps(main()))
