"""Data: from names, files, frames and arrays to one encoded split a seed."""

from probatum.data.dataset import Dataset
from probatum.data.library import embedded_names, library_names, subset
from probatum.data.open import open_dataset
from probatum.data.pipeline import Pipeline, load_pipeline, save_pipeline

__all__ = [
    "Dataset",
    "Pipeline",
    "embedded_names",
    "library_names",
    "load_pipeline",
    "open_dataset",
    "save_pipeline",
    "subset",
]
