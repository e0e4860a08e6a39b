"""Thresholds of the rule-based planner, tuned by CMA-ES in the simulator."""
