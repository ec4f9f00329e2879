"""Acting with a trained policy, one control step at a time."""
