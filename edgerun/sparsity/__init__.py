"""Activation sparsity: at decode, the weights that a token does not need are not read."""
