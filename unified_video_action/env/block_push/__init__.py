"""Block pushing: an effector pushes a red and a green block into a red and a green square, in any order and pairing."""
