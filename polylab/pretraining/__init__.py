"""How the embedded backbone was made: generated text and the module that trains on it."""

from polylab.pretraining.datamodule import PretrainingData
from polylab.pretraining.module import PretrainModule

__all__ = ["PretrainModule", "PretrainingData"]
