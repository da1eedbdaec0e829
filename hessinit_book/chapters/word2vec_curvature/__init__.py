"""The chapter of `notebooks/word2vec_curvature.ipynb`."""

from hessinit_book.word2vec import import_gensim

gensim = import_gensim()
