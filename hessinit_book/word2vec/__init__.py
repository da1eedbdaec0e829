"""Word2Vec with gensim: corpora, vocabulary, initial vectors, pairs and training."""
