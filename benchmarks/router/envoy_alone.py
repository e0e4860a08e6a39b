"""Envoy without a picker: the same binary, a static route, the same engines behind it.

What our router adds to a stream is the difference between this and ours under one load, hence
`stream_vs_envoy_alone` = tokens per second through ours over tokens per second through this.

    python -m benchmarks.router.envoy_alone
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.router import upstream
from benchmarks.router.loads import Measured, Shape, closed_loop, short_requests_rps
from benchmarks.router.processes import Stack, free_port

STREAMS = 1000
STREAM = Shape(isl=100, osl=600)

_NO_LIMIT = 1_000_000
_HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."


@dataclass(frozen=True)
class Streams:
    """Many streams at a time, each of many small chunks.

    Attributes:
        tokens_per_s: of all streams together while they stream; what comes before their first
            tokens, a router's decisions above all, is not in it.
        run: everything, beginnings included.
    """

    tokens_per_s: float
    run: Measured

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.tokens_per_s:,.0f} tokens/s while streaming; {self.run}"


def streams(
    url: str,
    model: str,
    *,
    concurrency: int = STREAMS,
    cpu_s: Callable[[], float] | None = None,
) -> Streams:
    """Begin all streams at once, and let each run to its end."""
    run = closed_loop(url, model, STREAM, concurrency=concurrency, cpu_s=cpu_s)
    return Streams(1e3 * concurrency / run.itl_mean_ms, run)


@contextmanager
def serving(upstreams: Sequence[str], concurrency: int = 2) -> Iterator[tuple[Stack, str]]:
    """Envoy in front of engines, up; yields its process and its URL.

    Args:
        upstreams: `ip:port` of each engine.
        concurrency: worker threads, as many as our router gives it.
    """
    port, admin_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="envoy-alone-") as name:
        folder = Path(name)
        path = folder / "envoy.json"
        path.write_text(json.dumps(bootstrap(port, admin_port, upstreams)))
        with Stack(folder) as stack:
            binary = files("envoy") / "_bin" / "envoy"
            stack.start(
                "envoy",
                [
                    *(str(binary), "-c", str(path), "--concurrency", str(concurrency)),
                    *("--log-level", "error", "--use-dynamic-base-id"),
                ],
            )
            stack.wait_for(f"http://127.0.0.1:{admin_port}/ready", "LIVE")
            yield stack, f"http://127.0.0.1:{port}"


def bootstrap(port: int, admin_port: int, upstreams: Sequence[str]) -> dict[str, Any]:
    """One listener, one route, one cluster; nothing but what carrying streams needs."""
    manager = {
        "@type": f"{_HTTP}HttpConnectionManager",
        "stat_prefix": "alone",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster": "engines", "timeout": "0s"},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    kinds = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    endpoints = [{"endpoint": {"address": _address(*_split(where))}} for where in upstreams]
    cluster = {
        "name": "engines",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [dict.fromkeys(kinds, _NO_LIMIT)]},
        "load_assignment": {
            "cluster_name": "engines",
            "endpoints": [{"lb_endpoints": endpoints}],
        },
    }
    listener = {
        "name": "clients",
        "address": _address("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {
        "admin": {"address": _address("127.0.0.1", admin_port)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _split(where: str) -> tuple[str, int]:
    host, _, port = where.rpartition(":")
    return host, int(port)


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def main() -> None:
    """Measure the client's ceiling without anything in between, then Envoy."""
    with upstream.running(1, itl_ms=0.0) as engines:
        direct = f"http://{engines[0]}"
        print(f"no router: {streams(direct, upstream.MODEL)}")
        print(f"no router: {short_requests_rps(direct, upstream.MODEL):,.0f} short requests/s")
        with serving(engines) as (stack, url):
            print(f"Envoy alone: {streams(url, upstream.MODEL, cpu_s=stack.cpu_s)}")
            print(f"Envoy alone: {short_requests_rps(url, upstream.MODEL):,.0f} short requests/s")


if __name__ == "__main__":
    main()
