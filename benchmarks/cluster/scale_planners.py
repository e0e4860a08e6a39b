"""`hrl-planner plan all` with traffic out of the air, and a count of what it asks and how long.

    python -m benchmarks.cluster.scale_planners KUBECONFIG NAMESPACE STATISTICS

The process is the one that serves (`control.serve.Service`), with `scale_traffic` as the source of
metrics. What it did since it began is written to the file STATISTICS every second.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubernetes.aio.client import rest as aio_rest
from kubernetes.client import rest

from benchmarks.cluster.scale_traffic import Traffic
from hrl_planner.control import Connector
from hrl_planner.control.decision_log import DecisionLog, to_stdout
from hrl_planner.control.fleet import Planners
from hrl_planner.control.instruments import Instruments
from hrl_planner.control.run import Key, Planner
from hrl_planner.control.serve import Service, this_process
from hrl_planner.control.watched import Reader
from hrl_planner.kube.access import blocking_client

_counts: Counter[str] = Counter()
_waited_s: Counter[str] = Counter()
_lock = threading.Lock()


def count(method: str, url: str, query: Any) -> str:
    """Note a request as `VERB resource`, and return that."""
    path, _, more = urlsplit(url).path.partition("/namespaces/")
    parts = more.split("/")[1:] if more else [path.rsplit("/", 1)[-1]]
    resource, sub = parts[0], parts[2] if len(parts) > 2 else ""
    text = f"{urlsplit(url).query} {query or ''}"
    if method == "GET":
        verb = "WATCH" if "watch" in text else "GET" if len(parts) > 1 else "LIST"
    else:
        verb = method
    name = f"{verb} {resource}{'/' + sub if sub else ''}"
    with _lock:
        _counts[name] += 1
    return name


def count_requests() -> None:
    """Count every request of both clients from now on."""
    blocking, waiting = rest.RESTClientObject.request, aio_rest.RESTClientObject.request

    def request(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        name, began_s = count(method, url, kwargs.get("query_params")), time.perf_counter()
        try:
            return blocking(self, method, url, *args, **kwargs)
        finally:
            with _lock:
                _waited_s[name] += time.perf_counter() - began_s

    async def aio_request(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        count(method, url, kwargs.get("query_params"))
        return await waiting(self, method, url, *args, **kwargs)

    rest.RESTClientObject.request = request
    aio_rest.RESTClientObject.request = aio_request


class Timed:
    """A planner whose rounds are timed."""

    def __init__(self, planner: Planner, took: dict[str, list[float]], level: str) -> None:
        self.name = planner.name
        self._planner, self._took, self._level = planner, took, level

    @property
    def interval_s(self) -> float:
        """See `Planner`."""
        return self._planner.interval_s

    def follow(self) -> Any:
        """See `Planner`."""
        return self._planner.follow()

    def round(self) -> Any:
        """See `Planner`."""
        began_s, used_s = time.perf_counter(), time.thread_time()
        try:
            return self._planner.round()
        finally:
            wall_s = time.perf_counter() - began_s
            with _lock:
                self._took[self._level].append(wall_s)
                self._took[f"{self._level} cpu"].append(time.thread_time() - used_s)


class TimedPlanners(Planners):
    """Makes planners whose rounds are timed.

    Attributes:
        took: seconds by level, and of processor time by `LEVEL cpu`.
    """

    def __init__(self, connector: Connector) -> None:
        super().__init__(connector, Traffic())
        self.took: dict[str, list[float]] = defaultdict(list)

    def make(self, key: Key, look: Reader) -> Planner:
        """See `Planners`."""
        return Timed(super().make(key, look), self.took, key.level)


def main() -> None:
    """Run until SIGTERM."""
    kubeconfig, namespace, statistics = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    count_requests()
    connector = Connector(blocking_client(kubeconfig), namespace)
    planners = TimedPlanners(connector)
    log = DecisionLog(to_stdout(), this_process(), namespace)
    service = Service(connector, planners, kubeconfig, None, log=log, instruments=Instruments())
    stop = threading.Event()

    def tell() -> None:
        while not stop.wait(1.0):
            with _lock:
                told = {
                    "requests": dict(_counts),
                    "waited_s": dict(_waited_s),
                    "took_s": {level: list(took) for level, took in planners.took.items()},
                    "watches": service.watches,
                }
            fresh = statistics.with_suffix(".new")
            fresh.write_text(json.dumps(told))
            fresh.replace(statistics)

    teller = threading.Thread(target=tell)
    teller.start()
    signal.signal(signal.SIGTERM, lambda *_: service.stop())
    service.run("127.0.0.1", 0)
    stop.set()
    teller.join()


if __name__ == "__main__":
    main()
