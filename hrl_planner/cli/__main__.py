"""`python -m hrl_planner.cli`, the same as `hrl-planner`."""

from hrl_planner.cli import main

main()
