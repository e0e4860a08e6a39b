"""Registers the policies of this package by name; importing it is enough."""

from agents.dynamo import DynamoPolicy
from hrl_planner.planner.registry import register_policy

register_policy(
    "dynamo", DynamoPolicy, "NVIDIA Dynamo's planner per pool and its arbiter per GPU type"
)
