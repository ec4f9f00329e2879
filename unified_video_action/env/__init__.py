"""Simulators as plain gymnasium environments, one folder each."""
