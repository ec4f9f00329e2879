"""LIBERO: a Panda arm at household tasks that are given in words."""
