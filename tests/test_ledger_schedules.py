"""The ledger under random schedules of planners, faults and hands (`ledger_machine.py`).

`LEDGER_SCHEDULES=20000 pytest tests/test_ledger_schedules.py -k never_exceeded` runs as many as
asked, each schedule another one every time.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ledger_machine import LedgerMachine

SCHEDULES = int(os.environ.get("LEDGER_SCHEDULES", "200"))


def schedules(count: int) -> settings:
    return settings(
        max_examples=count,
        stateful_step_count=12,
        database=None,
        phases=[Phase.generate],  # a burst's seed does not shrink
        derandomize="LEDGER_SCHEDULES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )


class WithHands(LedgerMachine):
    hands = True


@pytest.mark.parametrize("machine", [LedgerMachine, WithHands])
def test_the_budget_is_never_exceeded(machine: type[LedgerMachine]) -> None:
    run_state_machine_as_test(machine, settings=schedules(SCHEDULES // 2))
