"""Demonstrations without people: scripted experts, their collectors, and a simulated arm to record them on."""
