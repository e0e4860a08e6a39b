"""Tune thresholds from the command line: `python -m agents.thresholds --spec reference`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from hrl_planner.errors import HrlPlannerError


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    parse.__name__ = "int"  # what argparse calls it where it is none
    return parse


def main() -> int:
    """Parse arguments, tune, write the YAML, print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m agents.thresholds", description=__doc__)
    parser.add_argument("--spec", default="reference", help="name or path of a cluster spec")
    parser.add_argument("--generations", type=_at_least(1), default=10, help="rounds of CMA-ES")
    parser.add_argument("--population", type=_at_least(2), default=8, help="candidates per round")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of the search and the traces")
    parser.add_argument("--out", type=Path, help="YAML to write; absent: only print")
    options = parser.parse_args()

    from agents.thresholds.tune import save, tune
    from hrl_planner.spec import ClusterSpec

    try:
        spec = ClusterSpec.load(options.spec)
        parameters, best, default = tune(
            spec,
            generations=options.generations,
            population=options.population,
            seed=options.seed,
            on_generation=lambda k, value: print(f"generation {k + 1}: best {value:.4f}"),
        )
    except HrlPlannerError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"defaults {default:.4f}, tuned {best:.4f}\n{parameters}")
    if options.out is not None:
        save(
            options.out,
            parameters,
            spec.name,
            f"python -m agents.thresholds --spec {options.spec} --generations "
            f"{options.generations} --population {options.population} --seed {options.seed}: "
            f"score {default:.4f} with defaults, {best:.4f} tuned",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
