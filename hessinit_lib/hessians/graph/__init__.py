"""Graphs that are piecewise linear above their layers: exact norms."""
