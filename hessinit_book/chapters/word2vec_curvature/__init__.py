"""The chapter of `notebooks/word2vec_curvature.ipynb`."""
