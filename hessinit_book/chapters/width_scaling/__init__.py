"""The chapter of `notebooks/width_scaling.ipynb`."""
