"""Leases of the API server: who may act, and until when.

Election keeps planners out of each other's way; the budget does not depend on it. A lease is
taken over when its holder has not renewed it for its duration *by our own clock*, counted from
when we saw it change last, so clocks of different machines need not agree; a time in which we could
not look does not count.

A holder is a process by its name, which renews the lease; or `lease/NAME`: whoever holds that other
lease, for as long as it is renewed. So a process of hundreds of planners renews one lease, its
heartbeat, and is still known by each planner's own (`election.py`).
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Callable
from typing import Any

from kubernetes import client

from hrl_planner.control.requests import kube_error

# Two leaders do no harm (the ledger), so that a dead one may be replaced soon.
DURATION_S = 10.0
UNENDED_DURATIONS = 3.0
_TIMEOUT_S = 5.0
_BY_HEARTBEAT = "lease/"
_log = logging.getLogger(__name__)


class Leases:
    """The leases of a namespace as one candidate sees them. Its methods raise `KubeError`.

    Args:
        api: an authenticated client.
        namespace: of the leases.
        holder: this candidate, as it stands in leases it renews.
        clock: seconds, monotonic.
        duration_s: without renewal for so long a lease is free.

    Attributes:
        heartbeat: name of the lease by which this candidate may hold others.
    """

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        holder: str,
        clock: Callable[[], float],
        duration_s: float = DURATION_S,
    ) -> None:
        """See the class."""
        self.heartbeat = "hrl-planner-process-" + re.sub("[^a-z0-9]+", "-", holder.lower())
        self.by_heartbeat = _BY_HEARTBEAT + self.heartbeat
        self.holder = holder
        self._api = client.CoordinationV1Api(api)
        self._namespace = namespace
        self._clock, self._duration_s = clock, duration_s
        # Version of a lease, since when, and when it was looked at last.
        self._seen: dict[str, tuple[str, float, float]] = {}
        self._ended_last = ("", "")  # name and version of a heartbeat

    def read(self, name: str) -> Any | None:
        """Return a lease, or None if there is none."""
        try:
            return self._api.read_namespaced_lease(
                name, self._namespace, _request_timeout=_TIMEOUT_S
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise kube_error(f"read lease {name}", error) from error

    def read_all(self) -> dict[str, Any]:
        """Return all leases of the namespace by name."""
        try:
            found: Any = self._api.list_namespaced_lease(
                self._namespace, _request_timeout=_TIMEOUT_S
            )
        except client.ApiException as error:
            raise kube_error("list leases", error) from error
        return {lease.metadata.name: lease for lease in found.items}

    def is_ours(self, lease: Any) -> bool:
        """Say whether we hold a lease as read, by whatever name."""
        return lease.spec.holder_identity in (self.holder, self.by_heartbeat)

    def is_free(self, lease: Any, find: Callable[[str], Any | None]) -> bool:
        """Say whether nobody else holds a lease as read.

        Args:
            lease: as read.
            find: returns a lease that is named as a holder.
        """
        if not lease.spec.holder_identity or self.is_ours(lease):
            return True
        if not lease.spec.holder_identity.startswith(_BY_HEARTBEAT):
            return self._ran_out(lease)
        beat = find(lease.spec.holder_identity.removeprefix(_BY_HEARTBEAT))
        if beat is None or not beat.spec.holder_identity:
            return True
        # Its end tells a process that wakes up again that all is lost. Who may not end it waits
        # until such a process takes all its leases anew of its own accord.
        return self._ran_out(beat) and (self._ended(beat) or self._ran_out(beat, UNENDED_DURATIONS))

    def write(self, name: str, before: Any | None, holder: str) -> bool:
        """Put a holder into a lease; False if the lease is not any more as it was read."""
        spec = client.V1LeaseSpec(
            holder_identity=holder,
            lease_duration_seconds=round(self._duration_s),
            renew_time=datetime.datetime.now(datetime.UTC),
        )
        api, where = self._api, self._namespace
        try:
            if before is None:
                made = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=spec)
                api.create_namespaced_lease(where, made, _request_timeout=_TIMEOUT_S)
            else:
                before.spec = spec
                api.replace_namespaced_lease(name, where, before, _request_timeout=_TIMEOUT_S)
        except client.ApiException as error:
            if error.status in (404, 409):
                return False
            raise kube_error(f"write lease {name}", error) from error
        return True

    def remove(self, lease: Any) -> bool:
        """Remove a lease if it still is as it was read; where that is refused, it stays."""
        version = client.V1Preconditions(resource_version=lease.metadata.resource_version)
        name = lease.metadata.name
        try:
            self._api.delete_namespaced_lease(
                name,
                self._namespace,
                body=client.V1DeleteOptions(preconditions=version),
                _request_timeout=_TIMEOUT_S,
            )
        except client.ApiException as error:
            _log.debug("lease %s stays: %s", name, error.reason)
            return False
        return True

    def _ended(self, beat: Any) -> bool:
        version = (beat.metadata.name, beat.metadata.resource_version)
        if version != self._ended_last and self.remove(beat):
            self._ended_last = version
        return version == self._ended_last

    def _ran_out(self, lease: Any, durations: float = 1.0) -> bool:
        name, version, now_s = lease.metadata.name, lease.metadata.resource_version, self._clock()
        seen, since_s, looked_s = self._seen.get(name, ("", now_s, now_s))
        # While the API server was away nobody could renew: that says nothing of the holder.
        if seen != version or now_s - looked_s >= self._duration_s:
            since_s = now_s
        self._seen[name] = (version, since_s, now_s)
        return now_s - since_s >= durations * self._duration_s


class Lease:
    """One lease that its holder renews.

    Args:
        leases: of its namespace.
        name: of the lease.
    """

    def __init__(self, leases: Leases, name: str) -> None:
        """See the class."""
        self._leases, self._name = leases, name

    def hold(self) -> bool:
        """Take or renew the lease; say whether it is ours."""
        lease = self._leases.read(self._name)
        if lease is not None and not self._leases.is_free(lease, self._leases.read):
            return False
        return self._leases.write(self._name, lease, self._leases.holder)

    def release(self) -> None:
        """Let go of the lease if it is ours; whoever waits need not wait for it to run out."""
        lease = self._leases.read(self._name)
        if lease is not None and self._leases.is_ours(lease):
            self._leases.write(self._name, lease, "")
