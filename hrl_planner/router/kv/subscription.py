"""A ZMQ subscription to an engine, and how its connection comes and goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import zmq
import zmq.asyncio

_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 5_000
_HEARTBEAT_MS = 2_000
_QUEUED_MESSAGES = 100_000  # as many as vLLM's publisher and Dynamo's keep for a slow subscriber


@contextmanager
def subscription(
    context: zmq.asyncio.Context, endpoint: str, topic: bytes = b""
) -> Iterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
    """A subscriber, and its monitor: `HANDSHAKE_SUCCEEDED` when it is up, else `DISCONNECTED`.

    Raises:
        zmq.ZMQError: the endpoint is none.
    """
    socket = context.socket(zmq.SUB)
    try:
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        socket.setsockopt(zmq.RCVHWM, _QUEUED_MESSAGES)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        # A host that vanishes closes no connection; a ping without an answer shows it.
        socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        socket.setsockopt(zmq.SUBSCRIBE, topic)
        socket.connect(endpoint)
        yield socket, monitor
    finally:
        socket.disable_monitor()
        socket.close(linger=0)
