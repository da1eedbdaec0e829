"""The chapter of `notebooks/linearization_error.ipynb`."""
