"""Pods by label, so that those of one target are found among ten thousand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hrl_planner.control.pods import Labels, Pod


def equalities(selector: str) -> dict[str, str] | None:
    """Return the labels that a selector asks for; None if it asks for more than equal values."""
    wanted = {}
    for part in selector.split(","):
        key, equals, value = part.replace("==", "=").partition("=")
        if not equals or any(char in part for char in "!() "):
            return None
        wanted[key] = value
    return wanted


class PodIndex:
    """See the module. Changed by one thread, and read by others: what is read is copied at once."""

    def __init__(self) -> None:
        """See the class."""
        self._pods: dict[str, Pod] = {}
        self._by_label: dict[tuple[str, str], dict[str, Pod]] = {}

    def __len__(self) -> int:
        """Return how many pods there are."""
        return len(self._pods)

    def update(self, pods: Mapping[str, Pod], names: Iterable[str]) -> list[Pod]:
        """Take over pods that came, changed or went, and return those that went."""
        gone = []
        for name in names:
            before, after = self._pods.pop(name, None), pods.get(name)
            if after is not None:
                self._pods[name] = after
            elif before is not None:
                gone.append(before)
            self._move(name, before, after)
        return gone

    def find(self, labels: Labels) -> list[Pod]:
        """Return the pods that have all these labels, at least one."""
        groups = [self._by_label.get(label, {}) for label in labels.items()]
        fewest = list(min(groups, key=len).values())
        return [pod for pod in fewest if labels.items() <= pod.labels.items()]

    def _move(self, name: str, before: Pod | None, after: Pod | None) -> None:
        old = set() if before is None else set(before.labels.items())
        new = set() if after is None else set(after.labels.items())
        for label in old - new:
            self._by_label[label].pop(name)
            if not self._by_label[label]:
                del self._by_label[label]
        if after is not None:
            for label in new:
                self._by_label.setdefault(label, {})[name] = after
