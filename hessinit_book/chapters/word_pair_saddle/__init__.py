"""The chapter of `notebooks/word_pair_saddle.ipynb`."""
