"""How a planner tells people what changed: an Event on the object, and a line in the log.

What is told once is not told again every round: news are judged by the conditions that stand in
the object, and what cannot be written there by what this process said last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from hrl_planner.control.conditions import condition, event, news
from hrl_planner.control.connector import Connector, UnreadableError
from hrl_planner.kube.resources import Condition, Metadata

_log = logging.getLogger(__name__)


class Telling:
    """Tells of the objects of one kind.

    Args:
        connector: where events go.
        kind: of the objects.
        component: who tells.
    """

    def __init__(self, connector: Connector, kind: str, component: str) -> None:
        """See the class."""
        self._connector, self._kind, self._component = connector, kind, component
        self._denied = ""

    def tell(self, metadata: Metadata, reason: str, message: str, *, warning: bool = False) -> None:
        """Create an event."""
        self._connector.event(
            event(self._kind, metadata, reason, message, self._component, warning=warning)
        )

    def conditions(
        self,
        metadata: Metadata,
        before: Sequence[Condition],
        after: Sequence[Mapping[str, Any]],
    ) -> None:
        """Tell of the conditions that people should hear of."""
        for item in news(before, after):
            holds = item["status"] == "True"
            name, reason = item["type"], item["reason"]
            message = f"{name}: {item['message'] or reason}"
            level = logging.INFO if holds else logging.WARNING
            _log.log(level, "%s %s: %s (%s)", self._kind, metadata.name, message, reason)
            self.tell(metadata, reason, message, warning=not holds)

    def denied(self, metadata: Metadata, message: str) -> None:
        """Say what cannot be said in a status, because that may not be written."""
        if message != self._denied:
            self._denied = message
            self.tell(metadata, "Denied", message, warning=True)

    def unreadable(self, error: UnreadableError, kind: str) -> None:
        """Say on an object nobody understands that nobody does; what else it says stays."""
        told = condition(error.conditions, kind, False, "Unreadable", str(error))
        before = [c.model_dump(by_alias=True, exclude_none=True) for c in error.conditions]
        if told in before:
            return
        kept = [c for c in before if c["type"] != kind]
        self._connector.write_conditions(error, [*kept, told])
        self.conditions(error.metadata, error.conditions, [told])
