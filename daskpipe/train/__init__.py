"""Train: fit a MACE to a dataset with ``mace_run_train``, and measure its errors on the test split.

Needs   a labelled ``dataset.zarr`` with the splits train and val.
Makes   a folder: ``model.model``, ``MODEL_CARD.md``, ``metrics.json``, ``train.log``; whole or absent.
Entry   `train`.
Memory  below 2 GB for training sets of up to 100,000 atoms; larger ones are read from HDF5 during training.
"""

from daskpipe.train.mace_run import EpochFinished
from daskpipe.train.training import Trained, TrainingStarted, train

__all__ = ["EpochFinished", "Trained", "TrainingStarted", "train"]
