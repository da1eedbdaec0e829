"""The chapter of `notebooks/contest.ipynb`."""
