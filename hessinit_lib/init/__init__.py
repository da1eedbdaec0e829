"""Initialization: named schemes, the curvature-led `hessian_`, and its rivals."""
