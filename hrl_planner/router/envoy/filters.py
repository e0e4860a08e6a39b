"""The filters that a generation request passes, and what is taken from its headers before.

ext_proc asks the picker; the picker answers with metadata, not with headers, because headers are
not sent to it; two filters behind a buffer turn the metadata into headers. The buffer stands
between them because a body that the picker has changed needs a new length.
"""

from __future__ import annotations

import json

from hrl_planner.router.envoy._json import Json, seconds, typed, write_header
from hrl_planner.router.envoy.config import EnvoyConfig
from hrl_planner.router.envoy.names import ATTRIBUTES, DESTINATION, FALLBACK, METADATA

# A request id from a client is kept where it can go into any log and header as it is.
_SANE_REQUEST_ID = (
    "%CEL(request.headers['x-request-id'].matches('^[A-Za-z0-9._:-]+$') "
    "&& size(request.headers['x-request-id']) <= 128 ? request.headers['x-request-id'] : '')%"
)
# What the picker may add to a body (the hand-off fields of a prefill worker).
_BODY_GROWTH_BYTES = 1 << 20


def early_header_mutation() -> Json:
    """What a client must not say, removed before anything reads it."""
    kept_id = "x-gateway-request-id"
    return {
        "name": "no_router_headers_from_clients",
        "typed_config": typed(
            "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            mutations=[
                {"remove_on_match": {"key_matcher": {"prefix": "x-gateway-"}}},
                {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
                # An empty value is not written, so the id is carried over, not overwritten.
                write_header(kept_id, _SANE_REQUEST_ID),
                {"remove": "x-request-id"},
                write_header("x-request-id", f"%REQ({kept_id})%"),
                {"remove": kept_id},
            ],
        ),
    }


def http_filters(config: EnvoyConfig) -> list[Json]:
    """The chain, in order."""
    return [
        # Answers 503 for the picker once the router drains.
        {
            "name": "health",
            "typed_config": typed(
                "extensions.filters.http.health_check.v3.HealthCheck",
                pass_through_mode=True,
                headers=[{"name": ":path", "string_match": {"exact": "/health"}}],
            ),
        },
        {"name": "ext_proc", "typed_config": _ext_proc(config)},
        # The buffer filter writes the length of the body as the picker left it, but only where
        # no length is given.
        {
            "name": "forget_length",
            "typed_config": _header_mutation(
                {"remove": "content-length"}, {"remove": DESTINATION}, {"remove": FALLBACK}
            ),
        },
        {
            "name": "buffer",
            "typed_config": typed(
                "extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=config.max_body_bytes + _BODY_GROWTH_BYTES,
            ),
        },
        {
            "name": "destination",
            "typed_config": _header_mutation(_from_metadata(DESTINATION), _from_metadata(FALLBACK)),
        },
        {
            "name": "router",
            "typed_config": typed(
                "extensions.filters.http.router.v3.Router", suppress_envoy_headers=True
            ),
        },
    ]


def _ext_proc(config: EnvoyConfig) -> Json:
    return typed(
        "extensions.filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"google_grpc": _picker_channel(config)},
        # Without the picker there is no worker to send a request to.
        failure_mode_allow=False,
        status_on_error={"code": "ServiceUnavailable"},
        message_timeout=seconds(config.decision_timeout_s),
        metadata_options={"receiving_namespaces": {"untyped": [METADATA]}},
        # One exchange per request: headers come along as attributes, responses pass unseen.
        processing_mode={
            "request_header_mode": "SKIP",
            "response_header_mode": "SKIP",
            "request_body_mode": "BUFFERED",
        },
        request_attributes=list(ATTRIBUTES.values()),
    )


def _picker_channel(config: EnvoyConfig) -> Json:
    """A gRPC channel over which requests outlive a restart of the picker.

    Those that arrive while it is away wait for it, those it was deciding are asked again. Envoy's
    own gRPC client does the same only for bodies under 64 KiB, at half the processor time.
    """
    method = {
        "name": [{}],
        "waitForReady": True,
        "retryPolicy": {
            # A request that itself kills the picker may do so no more often than this.
            "maxAttempts": 3,
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        },
    }
    most_bytes = config.max_body_bytes + _BODY_GROWTH_BYTES
    numbers = {
        "grpc.enable_retries": 1,
        "grpc.per_rpc_retry_buffer_size": most_bytes,
        "grpc.max_receive_message_length": most_bytes,
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 500,
        "grpc.enable_http_proxy": 0,
    }
    return {
        "target_uri": config.picker,
        "stat_prefix": "picker",
        "channel_args": {
            "args": {
                "grpc.service_config": {"string_value": json.dumps({"methodConfig": [method]})},
                **{name: {"int_value": value} for name, value in numbers.items()},
            }
        },
    }


def _header_mutation(*mutations: Json) -> Json:
    return typed(
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": list(mutations)},
    )


def _from_metadata(name: str) -> Json:
    return write_header(name, f"%DYNAMIC_METADATA({METADATA}:{name})%")
