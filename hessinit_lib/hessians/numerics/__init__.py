"""Eigenvalues, precision, memory and standard errors."""
