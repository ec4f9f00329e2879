"""The control of an arm by a policy: observation, planning, the safety filter, the loop and its operator."""
