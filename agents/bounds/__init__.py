"""What no planner can beat, and what the best one without planning does.

clairvoyant   an LP that knows the trace: best plan in hindsight, and the budget a load needs
specs         clusters without a limit: unlimited budget, no start-up time; other tightness
best_static   the best fixed replicas in hindsight, found in the simulator
"""
