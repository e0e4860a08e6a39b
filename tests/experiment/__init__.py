"""Experiments run in parts, mix nothing that differs, say what is missing, and report the rest."""
