"""Fully connected networks, smooth activations included: exact norms."""
