"""A loopback network of its own for each local cluster: 127.N.0.0/16.

Linux answers on every address of 127/8, so every server and every pod can have an address to itself
and listen on the port it would have in a real cluster. Clusters side by side on one machine, as
tests in parallel start them, must not pick the same N: a network is claimed by listening on its
first address, and whoever finds that taken tries another.
"""

from __future__ import annotations

import errno
import itertools
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from hrl_planner.errors import LocalClusterError

# 127.0.0.x is everybody's; 127.1.x to 127.15.x are used by resolvers and the like.
_NETWORKS = range(16, 240)
# The port a kubelet serves on; nothing else on the machine listens on it at these addresses.
_CLAIM_PORT = 10250
# The first 255 hosts are the cluster's servers and nodes.
_POD_HOSTS = range(256, 65_535)


@dataclass
class LoopbackNetwork:
    """65,000 loopback addresses that no other local cluster uses."""

    number: int
    _claim: socket.socket
    _pods: Iterator[int] = field(default_factory=lambda: itertools.cycle(_POD_HOSTS))

    @classmethod
    def claim(cls) -> LoopbackNetwork:
        """Find a network that is free, and hold it until `release` or the end of this process."""
        for number in random.sample(_NETWORKS, len(_NETWORKS)):
            claim = socket.socket()
            # A claim that ended a moment ago must not look taken.
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                claim.bind((f"127.{number}.0.1", _CLAIM_PORT))
                claim.listen()
            except OSError as error:
                claim.close()
                if error.errno == errno.EADDRINUSE:
                    continue
                raise LocalClusterError(
                    f"cannot listen on 127.{number}.0.1: {error.strerror}; a local cluster needs "
                    "Linux, where all of 127.0.0.0/8 is loopback"
                ) from error
            return cls(number, claim)
        raise LocalClusterError("all loopback networks 127.16.0.0 to 127.239.0.0 are taken")

    def address(self, host: int) -> str:
        """The address of a host, 1 to 65,534."""
        return f"127.{self.number}.{host >> 8}.{host & 255}"

    def pod_address(self) -> str:
        """An address for the next pod; addresses come round again after 65,000 pods."""
        return self.address(next(self._pods))

    def release(self) -> None:
        """Leave the network to others."""
        self._claim.close()
