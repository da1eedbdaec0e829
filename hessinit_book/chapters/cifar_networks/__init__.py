"""The chapter of `notebooks/cifar_networks.ipynb`."""
