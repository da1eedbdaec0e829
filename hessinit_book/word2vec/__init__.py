"""Word2Vec with gensim: corpora, starts, training, quality, and the curvature of its vectors."""
