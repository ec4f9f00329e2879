"""LIBERO: a Panda arm at household tasks that are told in words."""
