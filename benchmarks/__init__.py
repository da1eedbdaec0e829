"""Benchmarks: side by side with the other ways, in one run, as ratios."""
