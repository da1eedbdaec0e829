"""The chapter of `notebooks/diagnose.ipynb`."""
