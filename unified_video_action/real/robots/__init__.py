"""Drivers of arms and cameras, and the recorder of episodes."""
