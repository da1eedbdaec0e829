"""The chapter of `notebooks/layer_structure.ipynb`."""
