"""Archives as vqcomp writes and users open them."""
