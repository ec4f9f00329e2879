"""Measures of a trained policy that need no simulator."""
