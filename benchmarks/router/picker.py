"""What one core of picker carries: 2 kB bodies through Envoy, a worker that answers at once.

wrk drives Envoy, Envoy asks the picker once per request, the worker is another Envoy that answers
from memory, so neither the load nor the engine is what is measured. Cores are counted by the
processor time of the picker process, request log included.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from benchmarks.router.decision import wide_spec
from benchmarks.router.processes import cpu_s
from hrl_planner.router.local import LocalRouter, free_ports, local_router

BODY_BYTES = 2048
_SECONDS = 6
_ROUNDS = 3


@dataclass(frozen=True)
class Throughput:
    """Medians of three rounds.

    Attributes:
        rps: requests per second through Envoy and picker.
        picker_rps_per_core: requests per second of the picker's processor time.
        envoy_rps_per_core: ... of Envoy's.
        p99_ms: of wrk.
    """

    rps: float
    picker_rps_per_core: float
    envoy_rps_per_core: float
    p99_ms: float


@asynccontextmanager
async def instant_worker(folder: Path) -> AsyncIterator[str]:
    """Run an Envoy that answers every request from memory; yields its address."""
    (port,) = free_ports(1)
    typed = "type.googleapis.com/envoy.extensions.filters."
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "{}"}},
    }
    manager = {
        "@type": f"{typed}network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "worker",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{typed}http.router.v3.Router"}}
        ],
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    path = folder / "worker.yaml"
    path.write_text(yaml.safe_dump({"static_resources": {"listeners": [listener]}}))
    process = await asyncio.create_subprocess_exec(
        str(files("envoy") / "_bin" / "envoy"),
        *("-c", str(path), "--concurrency", "1", "-l", "error", "--disable-hot-restart"),
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


def _script(folder: Path) -> Path:
    words = "hello world " * (BODY_BYTES // 12 - 10)
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 20, "stream": True}
    path = folder / "wrk.lua"
    path.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = {json.dumps(json.dumps(body))}\n"
    )
    return path


async def _round(router: LocalRouter, script: Path, seconds: int) -> Throughput:
    children = await router.children()
    before = {name: cpu_s(pid) for name, pid in children.items()}
    url = f"{router.url}/v1/chat/completions"
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", "-c64", f"-d{seconds}", "--latency", "-s", str(script), url),
        stdout=asyncio.subprocess.PIPE,
    )
    text = (await process.communicate())[0].decode()
    if "Non-2xx" in text or process.returncode:
        raise RuntimeError(f"wrk saw failures:\n{text}")
    used = {name: cpu_s(pid) - before[name] for name, pid in children.items()}
    requests = int(_search(r"(\d+) requests in", text))
    rps = float(_search(r"Requests/sec:\s+([\d.]+)", text))
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    assert p99 is not None
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}[p99.group(2)]
    return Throughput(
        rps, requests / used["picker"], requests / used["envoy"], float(p99.group(1)) * scale
    )


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk said nothing of {pattern}:\n{text}")
    return found.group(1)


async def measure() -> Throughput:
    """Run warm-up and three rounds."""
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark drives its load with wrk: apt install wrk")
    spec = wide_spec()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(
            yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True))
        )
        async with instant_worker(folder) as address:
            workers = [
                {"name": f"{pool.name}-{k}", "pool": pool.name, "address": address}
                for pool in spec.pools
                for k in range(2)
            ]
            (folder / "workers.yaml").write_text(yaml.safe_dump({"workers": workers}))
            config = {"spec": "spec.yaml", "discovery": {"kind": "file", "path": "workers.yaml"}}
            async with local_router(config, folder) as router:
                script = _script(folder)
                await _round(router, script, 2)
                rounds = [await _round(router, script, _SECONDS) for _ in range(_ROUNDS)]
    return Throughput(
        *(
            statistics.median(getattr(one, field) for one in rounds)
            for field in Throughput.__dataclass_fields__
        )
    )


def main() -> Throughput:
    """Print the figures."""
    found = asyncio.run(measure())
    print(
        f"picker, {BODY_BYTES} B bodies: {found.rps:,.0f} requests/s, "
        f"{found.picker_rps_per_core:,.0f} per core of picker, "
        f"{found.envoy_rps_per_core:,.0f} per core of Envoy, "
        f"p99 {found.p99_ms:.0f} ms at 64 clients"
    )
    return found


if __name__ == "__main__":
    main()
