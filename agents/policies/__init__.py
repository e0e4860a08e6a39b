"""Policies that are trained: set networks, what their outputs mean, and SB3's face over both."""
