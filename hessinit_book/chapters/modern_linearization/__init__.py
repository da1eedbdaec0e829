"""The chapter of `notebooks/modern_linearization.ipynb`."""
