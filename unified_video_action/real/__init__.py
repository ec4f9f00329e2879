"""Policies on real arms: a server for their plans, drivers of arms and cameras, and the loop that keeps them safe."""
