"""Liveness, readiness and metrics over HTTP: `/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from hrl_planner.errors import HrlPlannerError

_PAGE = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    """A small server in a thread of its own; a context manager that stops it.

    Args:
        port: 0 for any free one.
        alive: no answer of the API server is needed for this one.
        ready: a round was made.
        metrics: the page for Prometheus.
        host: where to listen.

    Raises:
        HrlPlannerError: if nobody can listen there.
    """

    def __init__(
        self,
        port: int,
        alive: Callable[[], bool],
        ready: Callable[[], bool],
        metrics: Callable[[], bytes] | None = None,
        host: str = "0.0.0.0",
    ) -> None:
        """See the class."""
        answers = {"/healthz": alive, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                answer = answers.get(path)
                page = metrics() if metrics is not None and path == "/metrics" else None
                found = page is not None or (answer is not None and answer())
                self.send_response(200 if found else 404 if answer is None else 503)
                if page is not None:
                    self.send_header("Content-Type", _PAGE)
                self.send_header("Content-Length", str(len(page or b"")))
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, format: str, *args: object) -> None:
                """Probes are not worth a line each."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, UnicodeError) as error:  # taken, not ours, or no host at all
            reason = getattr(error, "strerror", None) or error
            raise HrlPlannerError(
                f"--health-host {host}, --health-port {port}: cannot listen: {reason}"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Health:
        """Start answering."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
