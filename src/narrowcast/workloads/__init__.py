"""Side wing: tasks' data. Knows nothing of precision."""

from narrowcast.workloads.corpus import Corpus, load_corpus
from narrowcast.workloads.tokens import TokenizedCorpus, tokenize

__all__ = ["Corpus", "TokenizedCorpus", "load_corpus", "tokenize"]
