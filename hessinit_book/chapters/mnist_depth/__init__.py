"""The chapter of `notebooks/mnist_depth.ipynb`."""
