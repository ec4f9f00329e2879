"""Episode stores and the training samples cut from them."""
