"""Side wing: what is computed: texts, pictures, linear systems, functions to learn. Knows nothing of precision."""

from narrowcast.workloads.classify import fit
from narrowcast.workloads.corpus import Corpus, load_corpus
from narrowcast.workloads.images import Images, cifar10, mnist
from narrowcast.workloads.tokens import TokenizedCorpus, derived_seed, encode, tokenize, windows

__all__ = [
    "Corpus",
    "Images",
    "TokenizedCorpus",
    "cifar10",
    "derived_seed",
    "encode",
    "fit",
    "load_corpus",
    "mnist",
    "tokenize",
    "windows",
]
