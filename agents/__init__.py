"""Policies that learn, what they must beat, and how both are compared."""
