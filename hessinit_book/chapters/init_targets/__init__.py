"""The chapter of `notebooks/init_targets.ipynb`."""
