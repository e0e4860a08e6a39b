"""Envoy, the data plane: its bootstrap, its command line, and what it and the picker agree on."""

from hrl_planner.router.envoy.bootstrap import GENERATION_PATHS, PICKER_HTTP_PATHS, bootstrap
from hrl_planner.router.envoy.config import EnvoyConfig
from hrl_planner.router.envoy.names import (
    ACCESS_LOG_NAME,
    ACCESS_LOG_TAGS,
    ATTRIBUTES,
    DESTINATION,
    FALLBACK,
    METADATA,
    REFUSED,
)
from hrl_planner.router.envoy.process import child, drain, ready

__all__ = [
    "ACCESS_LOG_NAME",
    "ACCESS_LOG_TAGS",
    "ATTRIBUTES",
    "DESTINATION",
    "FALLBACK",
    "GENERATION_PATHS",
    "METADATA",
    "PICKER_HTTP_PATHS",
    "REFUSED",
    "EnvoyConfig",
    "bootstrap",
    "child",
    "drain",
    "ready",
]
