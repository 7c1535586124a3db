"""Data: from names, files, frames and arrays to one encoded split a seed."""

from probatum.data.dataset import Dataset
from probatum.data.library import library_names, subset
from probatum.data.open import embedded_names, open_dataset
from probatum.data.pipeline import Pipeline, load_pipeline, save_pipeline
from probatum.kinds.language.corpus import Corpus, corpus, corpus_names

__all__ = [
    "Corpus",
    "Dataset",
    "Pipeline",
    "corpus",
    "corpus_names",
    "embedded_names",
    "library_names",
    "load_pipeline",
    "open_dataset",
    "save_pipeline",
    "subset",
]
