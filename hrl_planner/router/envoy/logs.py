"""How Envoy tells of requests: to the picker, to a file, and as spans to a collector."""

from __future__ import annotations

from hrl_planner.router.envoy._json import Json, typed
from hrl_planner.router.envoy.config import EnvoyConfig
from hrl_planner.router.envoy.names import ACCESS_LOG_NAME, ACCESS_LOG_TAGS

_LINE = {
    "time": "%START_TIME%",
    "request_id": "%REQ(x-request-id)%",
    "method": "%REQ(:method)%",
    "path": "%REQ(:path)%",
    "status": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "traceparent": "%REQ(traceparent)%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
    **ACCESS_LOG_TAGS,
}


def access_logs(config: EnvoyConfig) -> list[Json]:
    """Ended requests go to the picker in batches over one stream, and to a file where asked."""
    to_picker = typed(
        "extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        common_config={
            "log_name": ACCESS_LOG_NAME,
            "transport_api_version": "V3",
            "buffer_flush_interval": "0.05s",
            "buffer_size_bytes": 65536,
            "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
            "custom_tags": [{"tag": tag, "value": value} for tag, value in ACCESS_LOG_TAGS.items()],
        },
    )
    logs = [{"name": "picker", "typed_config": to_picker}]
    if config.access_log is not None:
        to_file = typed(
            "extensions.access_loggers.file.v3.FileAccessLog",
            path=config.access_log,
            log_format={"json_format": _LINE},
        )
        logs.append({"name": "file", "typed_config": to_file})
    return logs


def tracing(config: EnvoyConfig) -> Json:
    """Fields of the connection manager; none leaves a client's trace headers as they came."""
    if config.otlp_endpoint is None:
        return {}
    provider = typed(
        "config.trace.v3.OpenTelemetryConfig",
        grpc_service={"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "1s"},
        service_name=config.service_name,
    )
    return {"tracing": {"provider": {"name": "otlp", "typed_config": provider}}}
