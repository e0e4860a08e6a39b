"""Logs of router and picker: JSON, one object a line, on standard error."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from hrl_planner.router.config import LogConfig


def set_up(config: LogConfig, process: str) -> None:
    """Write logs of this process as JSON.

    Args:
        config: level.
        process: `router` or `picker`, a field of every line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            static_fields={"process": process},
        )
    )
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    # It tells every change of the folder it watches, our own log file among them.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
