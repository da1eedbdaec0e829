"""The chapter of `notebooks/mnist_tracking.ipynb`."""
