"""An arm of the X5's proportions, its cameras and a table with a cup, simulated: what needs no robot is tried here."""
