"""The chapter of `notebooks/norm_propagation.ipynb`."""
