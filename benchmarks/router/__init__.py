"""The router beside what else there is: Envoy alone, Dynamo's global router path, other routers.

Every module measures one thing and returns a plain dataclass; nothing here knows our router except
by its URL. Loads are closed loops of `hrl_planner.load`, which shares the machine's cores with what
it measures: compare figures of one run only.
"""
