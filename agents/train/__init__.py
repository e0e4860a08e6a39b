"""Training: config -> stages (PPO on the batched simulator) -> checkpoint."""
