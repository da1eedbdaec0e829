"""The chapter of `notebooks/word2vec.ipynb`."""
