"""The chapter of `notebooks/step_gain.ipynb`."""
