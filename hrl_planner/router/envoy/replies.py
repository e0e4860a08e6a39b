"""Envoy's own answers in the words of OpenAI's API: `{"error": {message, type, param, code}}`.

The picker's refusals are in that form already and pass as they are.
"""

from __future__ import annotations

import json

from hrl_planner.router.envoy._json import Json, typed
from hrl_planner.router.envoy.config import EnvoyConfig
from hrl_planner.router.envoy.names import DESTINATION, METADATA, REFUSED


def local_replies(config: EnvoyConfig) -> Json:
    """Envoy's own answers, in OpenAI's words for errors; the picker's pass as they are."""
    as_it_is = {
        "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
        "content_type": "application/json",
    }
    empty_body = {
        "and_filter": {
            "filters": [{"response_flag_filter": {"flags": ["UH"]}}, _picker_was_not_asked()]
        }
    }
    return {
        "mappers": [
            {"filter": _by_picker(), "body_format_override": as_it_is},
            _reply(empty_body, 400, "empty_body", "the request body is empty"),
            *(
                _reply(_status(status), status, code, message)
                for status, code, message in (
                    (400, "malformed_request", "the request is not well-formed HTTP"),
                    (404, "not_found", "there is no such path or method here"),
                    (408, "request_timeout", "the request did not arrive in time"),
                    (
                        413,
                        "request_too_large",
                        f"the request body is longer than {config.max_body_bytes} bytes",
                    ),
                    (431, "headers_too_large", "the request headers are too long or too many"),
                    (503, "unavailable", "no worker could be reached; try again"),
                    (504, "timeout", "no worker answered in time"),
                )
            ),
        ],
        "body_format": _error_format("server_error", "error", "the request failed"),
    }


def _by_picker() -> Json:
    return {
        "extension_filter": {
            "name": "cel",
            "typed_config": typed(
                "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                expression=f"response.code_details.startsWith('{REFUSED}')",
            ),
        }
    }


def _picker_was_not_asked() -> Json:
    """Nothing but a request without a body passes the picker by."""
    return {
        "metadata_filter": {
            "matcher": {
                "filter": METADATA,
                "path": [{"key": DESTINATION}],
                "value": {"string_match": {"exact": ""}},
            },
            "match_if_key_not_found": True,
        }
    }


def _status(status: int) -> Json:
    return {
        "status_code_filter": {
            "comparison": {
                "op": "EQ",
                "value": {"default_value": status, "runtime_key": "router.unused"},
            }
        }
    }


def _reply(when: Json, status: int, code: str, message: str) -> Json:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {
        "filter": when,
        "status_code": status,
        "body_format_override": _error_format(kind, code, message),
    }


def _error_format(kind: str, code: str, message: str) -> Json:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return {
        "text_format_source": {"inline_string": json.dumps({"error": error})},
        "content_type": "application/json",
    }
