"""Training, top-down: fit (tokens to a .vqm), trainer (the loop), model (the network), functions (its arithmetic)."""
