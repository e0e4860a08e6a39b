"""A run on a real API server beside the simulator's run of the same: how far they agree."""

from agents.agreement.compare import Agreement, compare
from agents.agreement.report import terminal_table, write_report

__all__ = ["Agreement", "compare", "terminal_table", "write_report"]
