"""The load client: replays a trace against an OpenAI endpoint and measures what comes back.

    trace, spec -> prompts.py (requests as bytes)
                -> replay.py (when each is due) -> connection.py, wire.py, meter.py (one request)
                -> result.py (a row per request) -> summary.py (what it amounts to, by class)

It speaks raw HTTP/1.1 because it shares its cores with what it measures; docs/load.md has figures.
"""

from hrl_planner.load.options import Closed, LoadOptions, Pace, Target
from hrl_planner.load.prompts import Offered, SloTarget
from hrl_planner.load.replay import Progress, replay
from hrl_planner.load.result import LoadResult
from hrl_planner.load.summary import Summary, summarise

__all__ = [
    "Closed",
    "LoadOptions",
    "LoadResult",
    "Offered",
    "Pace",
    "Progress",
    "SloTarget",
    "Summary",
    "Target",
    "replay",
    "summarise",
]
