"""Planners on a real API server, under load and under faults.

`chaos` breaks things on purpose and says whether the budget held and how long everything took to
recover. Its parts serve tests too: `field` sets up a cluster, `workers` answers for worker pods,
`planners` runs planner processes, `store` follows every revision of the objects in etcd.
"""
