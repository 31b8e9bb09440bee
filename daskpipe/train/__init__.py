"""Train: a MACE on a dataset, by MACE's own ``mace_run_train``, with its errors on the test split.

Needs   a labelled ``dataset.zarr`` with the splits train and val.
Makes   a folder: ``model.model``, ``MODEL_CARD.md``, ``metrics.json``, ``train.log``; whole or absent.
Entry   `train`.
Memory  small: below 2 GB for training sets of up to 100,000 atoms; larger ones are read from HDF5 as they come.
"""

from daskpipe.train.mace_run import EpochFinished
from daskpipe.train.training import Trained, TrainingStarted, train

__all__ = ["EpochFinished", "Trained", "TrainingStarted", "train"]
