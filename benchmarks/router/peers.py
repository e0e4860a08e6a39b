"""Other people's routers in front of the same engines, as a user would start them.

    sglang-router 0.3   SGLang's model gateway, Rust inside a Python package
    vllm-router 0.1     vLLM's, which grew out of it

    python -m benchmarks.router.peers

Both come as wheels and live in an environment of their own, because their web frameworks are not
ours: `python3.11 -m venv peers-venv && peers-venv/bin/pip install -r
benchmarks/router/peers_requirements.txt`. Another place is named by HRL_PLANNER_PEERS_PYTHON. The
Python router of vLLM's production stack is not on PyPI.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.router import upstream
from benchmarks.router.envoy_alone import Streams, streams
from benchmarks.router.loads import Measured, Shape, closed_loop, short_requests_rps
from benchmarks.router.processes import Stack, StartError, free_port

PYTHON_VARIABLE = "HRL_PLANNER_PEERS_PYTHON"
DEFAULT_PYTHON = Path("peers-venv/bin/python")
POLICY = "cache_aware"  # what both recommend: prefix cache and load, like ours

_START_S = 60.0


@dataclass(frozen=True)
class Router:
    """A router of somebody else.

    Attributes:
        package: on PyPI.
        module: that starts it.
        log_level: its word for warnings.
    """

    package: str
    module: str
    log_level: str


ROUTERS = (
    Router("sglang-router", "sglang_router.launch_router", "warn"),
    Router("vllm-router", "vllm_router.launch_router", "warning"),
)


@dataclass(frozen=True)
class Peer:
    """What a router did.

    Attributes:
        version: of the package.
        short_rps: requests of one token per second (2 kB bodies).
        closed: 64 requests of 1,000 and 64 tokens at a time.
        streams: 1,000 streams at a time.
    """

    version: str
    short_rps: float
    closed: Measured
    streams: Streams


def measure(upstreams: Sequence[str], duration_s: float = 10.0) -> dict[str, Peer | str]:
    """Every router in turn; a sentence instead of one that is not installed.

    Args:
        upstreams: `ip:port` of each engine.
        duration_s: of each of the loads but the streams.
    """
    return {router.package: _measure(router, upstreams, duration_s) for router in ROUTERS}


def _measure(router: Router, upstreams: Sequence[str], duration_s: float) -> Peer | str:
    found = find(router)
    if isinstance(found, str):
        return found
    python, version = found
    model = upstream.MODEL
    try:
        with serving(router, python, upstreams) as (stack, url):
            return Peer(
                version=version,
                short_rps=short_requests_rps(url, model, duration_s=duration_s),
                closed=closed_loop(
                    url,
                    upstream.MODEL,
                    Shape(),
                    concurrency=64,
                    duration_s=duration_s,
                    cpu_s=stack.cpu_s,
                ),
                streams=streams(url, model, cpu_s=stack.cpu_s),
            )
    except StartError as error:
        return f"{router.package} {version} does not run here: {error}"


def find(router: Router) -> tuple[Path, str] | str:
    """The interpreter with a router and the router's version, or why there is none."""
    python = Path(os.environ.get(PYTHON_VARIABLE) or DEFAULT_PYTHON).absolute()
    how = f"{PYTHON_VARIABLE}=/path/to/python names an environment that has it"
    if not python.is_file():
        return f"no interpreter {python} with {router.package}; {how}"
    probe = (
        f"import importlib.metadata, {router.module}; "
        f"print(importlib.metadata.version({router.package!r}))"
    )
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"{python} cannot run {router.package} ({last}); {how}"
    return python, done.stdout.strip().splitlines()[-1]


@contextmanager
def serving(router: Router, python: Path, upstreams: Sequence[str]) -> Iterator[tuple[Stack, str]]:
    """A router, up and answering; yields its process and its URL."""
    port, metrics_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="peer-") as name, Stack(Path(name)) as stack:
        command = [
            *(str(python), "-m", router.module, "--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", *(f"http://{address}" for address in upstreams)),
            *("--policy", POLICY, "--prometheus-port", str(metrics_port)),
            *("--prometheus-host", "127.0.0.1", "--log-level", router.log_level),
        ]
        stack.start(router.package, command)
        probe = f'{{"model":"{upstream.MODEL}","prompt":"t1","max_tokens":1}}'.encode()
        stack.wait_for_post(f"{url}/v1/completions", probe, _START_S)
        yield stack, url


def main() -> None:
    """Measure what is installed."""
    with upstream.running(2, itl_ms=0.0) as engines:
        for package, peer in measure(engines).items():
            if isinstance(peer, str):
                print(peer)
                continue
            name = f"{package} {peer.version}"
            print(f"{name}: {peer.short_rps:,.0f} short requests/s")
            print(f"{name}, 64 x 1000/64: {peer.closed}")
            print(f"{name}, 1,000 streams: {peer.streams}")


if __name__ == "__main__":
    main()
