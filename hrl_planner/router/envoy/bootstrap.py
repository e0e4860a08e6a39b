"""Envoy's bootstrap: everything a request meets before and after the picker has chosen its worker.

A generation request passes, in this order: removal of headers that only the router may set; a
buffer for its body; ONE exchange with the picker over ext_proc (body and a few attributes there;
destination, fallback and perhaps a new body back); two header filters that write what the picker
chose, so nothing a client sent survives there; the cluster `worker`, which connects to whatever
address the destination header names. A retry goes to the cluster `fallback`, which reads the other
header. Tokens then stream through Envoy alone; the picker hears of the end by the access log.

Nothing here knows how a worker is chosen.
"""

from __future__ import annotations

from hrl_planner.router.envoy._json import Json, seconds, socket_address, typed
from hrl_planner.router.envoy.config import EnvoyConfig
from hrl_planner.router.envoy.filters import early_header_mutation, http_filters
from hrl_planner.router.envoy.logs import access_logs, tracing
from hrl_planner.router.envoy.names import DESTINATION, FALLBACK, METADATA, WORKER
from hrl_planner.router.envoy.replies import local_replies

GENERATION_PATHS = ("/v1/chat/completions", "/v1/completions")
PICKER_HTTP_PATHS = ("/v1/models", "/health")
_MATCHER = "extensions.router.cluster_specifiers.matcher.v3."
# Envoy's default, 1,024 connections and requests per cluster, is far below what a router carries;
# admission is the picker's business.
_NO_LIMIT = 1_000_000


def bootstrap(config: EnvoyConfig) -> Json:
    """Everything Envoy needs to know, in the shape of its bootstrap; dump it as JSON."""
    return {
        "admin": {"address": socket_address(f"127.0.0.1:{config.admin_port}")},
        "static_resources": {
            "listeners": [_listener(config)],
            "clusters": [
                _worker_cluster("worker", DESTINATION, config),
                _worker_cluster("fallback", FALLBACK, config),
                _service_cluster("picker", config.picker, http2=True),
                _service_cluster("picker_http", config.picker_http, http2=False),
                *(
                    [_service_cluster("otlp", config.otlp_endpoint, http2=True)]
                    if config.otlp_endpoint
                    else []
                ),
            ],
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": typed(
                        "extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        max_active_downstream_connections=config.max_connections,
                    ),
                }
            ]
        },
    }


def _listener(config: EnvoyConfig) -> Json:
    return {
        "name": "clients",
        "address": socket_address(config.listen),
        # Per connection and direction: what a slow reader of tokens may pile up here. Request
        # bodies have a limit of their own (`request_body_buffer_limit`).
        "per_connection_buffer_limit_bytes": 65536,
        "filter_chains": [
            {
                "filters": [
                    {"name": "http", "typed_config": _connection_manager(config)},
                ]
            }
        ],
    }


def _connection_manager(config: EnvoyConfig) -> Json:
    return typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="clients",
        codec_type="AUTO",
        use_remote_address=True,
        server_header_transformation="PASS_THROUGH",
        normalize_path=True,
        merge_slashes=True,
        max_request_headers_kb=32,
        common_http_protocol_options={
            "idle_timeout": seconds(config.keep_alive_s),
            "max_headers_count": 64,
            "headers_with_underscores_action": "DROP_HEADER",
        },
        http2_protocol_options={
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": 65536,
            "initial_connection_window_size": 1 << 20,
        },
        request_headers_timeout=seconds(config.headers_timeout_s),
        request_timeout=seconds(config.request_timeout_s),
        # Until a client learns that its stream broke off; one second is the default.
        delayed_close_timeout="0.2s",
        early_header_mutation_extensions=[early_header_mutation()],
        generate_request_id=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_id_extension={
            # A client's id stays as it is; Envoy would otherwise write its trace decision into it.
            "typed_config": typed(
                "extensions.request_id.uuid.v3.UuidRequestIdConfig", pack_trace_reason=False
            )
        },
        access_log=access_logs(config),
        local_reply_config=local_replies(config),
        route_config={
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "include_request_attempt_count": True,
                    "request_headers_to_remove": ["x-envoy-external-address"],
                    "routes": _routes(config),
                }
            ]
        },
        http_filters=http_filters(config),
        **tracing(config),
    )


def _routes(config: EnvoyConfig) -> list[Json]:
    no_picker = {
        "ext_proc": typed("extensions.filters.http.ext_proc.v3.ExtProcPerRoute", disabled=True)
    }
    generation = [
        {
            "match": {
                "path": path,
                "headers": [{"name": ":method", "string_match": {"exact": "POST"}}],
            },
            "route": _worker_route(config),
            "response_headers_to_add": [
                {"header": {"key": WORKER, "value": f"%DYNAMIC_METADATA({METADATA}:{WORKER})%"}}
            ],
            "request_body_buffer_limit": config.max_body_bytes,
        }
        for path in GENERATION_PATHS
    ]
    picker_http = [
        {
            "match": {
                "path": path,
                "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
            },
            "route": {"cluster": "picker_http", "timeout": "5s"},
            "typed_per_filter_config": no_picker,
        }
        for path in PICKER_HTTP_PATHS
    ]
    nothing = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 404, "body": {"inline_string": "no such path"}},
        "typed_per_filter_config": no_picker,
    }
    return [*generation, *picker_http, nothing]


def _worker_route(config: EnvoyConfig) -> Json:
    """To `worker`, on a second attempt to `fallback`, nowhere where the picker named no worker."""
    return {
        "timeout": "0s",
        # The last resort: whoever may be silent in a stream, the picker or a worker, has a timeout
        # of its own that ends sooner and does better.
        "idle_timeout": seconds(config.decision_timeout_s + config.first_byte_timeout_s),
        "inline_cluster_specifier_plugin": {
            "extension": {
                "name": "attempt",
                "typed_config": typed(
                    _MATCHER + "MatcherClusterSpecifier",
                    cluster_matcher={
                        "matcher_list": {
                            "matchers": [
                                {
                                    "predicate": _has_header("x-envoy-attempt-count"),
                                    "on_match": _to_cluster("fallback"),
                                },
                            ]
                        },
                        "on_no_match": _to_cluster("worker"),
                    },
                ),
            }
        },
        "retry_policy": {
            # Nothing has reached the client in any of these. An engine's own 503 means that it
            # did not begin.
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": [503],
            "num_retries": 1,
            "per_try_idle_timeout": seconds(config.first_byte_timeout_s),
            "refresh_cluster_on_retry": True,
        },
    }


def _has_header(name: str) -> Json:
    return {
        "single_predicate": {
            "input": {
                "name": name,
                "typed_config": typed(
                    "type.matcher.v3.HttpRequestHeaderMatchInput", header_name=name
                ),
            },
            "value_match": {"safe_regex": {"google_re2": {}, "regex": ".+"}},
        }
    }


def _to_cluster(name: str) -> Json:
    return {
        "action": {"name": name, "typed_config": typed(_MATCHER + "ClusterAction", cluster=name)}
    }


def _worker_cluster(name: str, header: str, config: EnvoyConfig) -> Json:
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": header},
        "connect_timeout": seconds(config.connect_timeout_s),
        "per_connection_buffer_limit_bytes": 65536,
        "circuit_breakers": _no_limits(),
        # A host that vanished without a word is noticed within half a minute.
        "upstream_connection_options": {
            "tcp_keepalive": {
                "keepalive_time": 10,
                "keepalive_interval": 5,
                "keepalive_probes": 4,
            }
        },
        "typed_extension_protocol_options": _protocol(
            http2=False, idle_timeout_s=config.worker_keep_alive_s
        ),
    }


def _service_cluster(name: str, address: str, *, http2: bool) -> Json:
    return {
        "name": name,
        "connect_timeout": "1s",
        "circuit_breakers": _no_limits(),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(address)}}]}],
        },
        "typed_extension_protocol_options": _protocol(http2=http2),
    }


def _protocol(*, http2: bool, idle_timeout_s: float | None = None) -> Json:
    explicit: Json = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    common = {} if idle_timeout_s is None else {"idle_timeout": seconds(idle_timeout_s)}
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "extensions.upstreams.http.v3.HttpProtocolOptions",
            explicit_http_config=explicit,
            common_http_protocol_options=common,
        )
    }


def _no_limits() -> Json:
    kinds = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [dict.fromkeys(kinds, _NO_LIMIT)]}
