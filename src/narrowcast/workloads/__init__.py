"""Side wing: what is computed: texts, linear systems, functions to learn. Knows nothing of precision."""

from narrowcast.workloads.corpus import Corpus, load_corpus
from narrowcast.workloads.tokens import TokenizedCorpus, encode, tokenize

__all__ = ["Corpus", "TokenizedCorpus", "encode", "load_corpus", "tokenize"]
