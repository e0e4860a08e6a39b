"""A hierarchical planner and router for LLMs served by heterogeneous pools of GPU workers."""
