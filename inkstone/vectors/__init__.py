"""Word vectors: the table that training gives, its files, and the parts that the families share.

`models/word2vec.py`, `models/glove.py` and `models/fasttext.py` are the algorithms; here are the
vocabulary, the compiled inner loops with their readable twin, and `Vectors`, what one asks.
"""
