"""NVIDIA Dynamo's own planner and global arbiter as a policy: the peer, unmodified.

    policy -> deployment (once per run)  what a user of Dynamo would configure for our pools
           -> telemetry  (every tick)    our observation in the words of Dynamo's metrics
           -> client                     a pipe to Dynamo's own interpreter
                server                   runs there: theirs, driven by simulated time

`ai-dynamo` needs about a hundred packages and lives in an environment of its own (`make
dynamo-venv`), so `server.py` imports nothing of this project and nothing else here imports Dynamo.
docs/dynamo.md says what is theirs, what is ours, and every setting.
"""

from agents.dynamo.policy import DynamoPolicy

__all__ = ["DynamoPolicy"]
