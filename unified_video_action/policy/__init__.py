"""Policies: what a robot, a simulator or a training loop talks to."""
