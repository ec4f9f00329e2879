"""One rollout loop for every simulator, and what comes out of it: metrics, rollout videos, reports."""
