"""The chapter of `notebooks/cifar_stability.ipynb`."""
