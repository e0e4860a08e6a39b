"""Leader election by Lease: one planner acts, the others wait to.

Election keeps planners out of each other's way; the budget does not depend on it. A lease is
taken over when its holder has not renewed it for its duration *by our own clock*, counted from
when we saw it change last, so clocks of different machines need not agree. A planner that stops
lets go at once.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from kubernetes import client

from hrl_planner.errors import KubeError

DURATION_S = 15.0


class Lease:
    """One lease, as one candidate sees it.

    Args:
        api: an authenticated client.
        namespace: of the lease.
        name: of the lease.
        holder: this candidate.
        clock: seconds, monotonic.
        duration_s: without renewal for so long it is free.
    """

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        name: str,
        holder: str,
        clock: Callable[[], float],
        duration_s: float = DURATION_S,
    ) -> None:
        """See the class."""
        self._api = client.CoordinationV1Api(api)
        self._namespace, self._name, self._holder = namespace, name, holder
        self._clock, self._duration_s = clock, duration_s
        self._seen = ("", clock())  # version, and since when

    def hold(self) -> bool:
        """Take or renew the lease; say whether it is ours.

        Raises:
            KubeError: if leases may not be read or written.
        """
        try:
            lease: Any = self._api.read_namespaced_lease(self._name, self._namespace)
        except client.ApiException as error:
            if error.status != 404:
                raise KubeError(f"lease {self._name}: {error.status} {error.reason}") from error
            return self._write(None, self._holder)
        version = lease.metadata.resource_version
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        expired = self._clock() - self._seen[1] >= self._duration_s
        if lease.spec.holder_identity in (self._holder, "", None) or expired:
            return self._write(lease, self._holder)
        return False

    def release(self) -> None:
        """Let go of the lease if it is ours; whoever waits need not wait for it to run out."""
        try:
            lease: Any = self._api.read_namespaced_lease(self._name, self._namespace)
        except client.ApiException:
            return
        if lease.spec.holder_identity == self._holder:
            self._write(lease, "")

    def _write(self, before: client.V1Lease | None, holder: str) -> bool:
        now = datetime.datetime.now(datetime.UTC)
        spec = client.V1LeaseSpec(
            holder_identity=holder, lease_duration_seconds=round(self._duration_s), renew_time=now
        )
        try:
            if before is None:
                metadata = client.V1ObjectMeta(name=self._name)
                made = client.V1Lease(metadata=metadata, spec=spec)
                self._api.create_namespaced_lease(self._namespace, made)
            else:
                before.spec = spec
                self._api.replace_namespaced_lease(self._name, self._namespace, before)
        except client.ApiException as error:
            if error.status == 409:
                return False
            raise KubeError(f"lease {self._name}: {error.status} {error.reason}") from error
        return holder == self._holder
