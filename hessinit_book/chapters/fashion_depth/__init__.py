"""The chapter of `notebooks/fashion_depth.ipynb`."""
