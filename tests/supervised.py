"""The supervisor as a process of its own, so that tests can send it signals and kill it.

Its one argument is JSON: `children` (name -> shell script), `patience` (fields of `Patience`),
`ready` (name -> file whose existence makes that child ready), `drained` (the drain ends once this
file exists).
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from hrl_planner.router.supervisor import Child, Patience, supervise


async def _main() -> int:
    said = json.loads(sys.argv[1])

    async def drain() -> None:
        while not Path(said["drained"]).exists():
            await asyncio.sleep(0.01)

    async def exists(path: str) -> bool:
        return Path(path).exists()

    children = [
        Child(
            name,
            ("sh", "-c", script) if script.strip() else ("/no/such/program",),
            ready=(lambda path=said["ready"][name]: exists(path))
            if name in said["ready"]
            else None,
        )
        for name, script in said["children"].items()
    ]
    return await supervise(children, drain=drain, patience=Patience(**said["patience"]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(asyncio.run(_main()))
