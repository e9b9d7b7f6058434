"""How a Poly model learns: the LightningModule, optimiser groups, metrics, checkpoints."""

from polylab.training.checkpoint import RunCheckpoint, save_adapter
from polylab.training.classification import ClassificationModule
from polylab.training.files import AtomicCheckpointIO, write_atomically
from polylab.training.history import HistoryLogger
from polylab.training.mix import write_mix
from polylab.training.module import PolyModule
from polylab.training.optim import OptimConfig
from polylab.training.results import count_trainable, write_metrics
from polylab.training.sharding import ShardedStrategy
from polylab.training.stopping import Stopping

__all__ = [
    "AtomicCheckpointIO",
    "ClassificationModule",
    "HistoryLogger",
    "OptimConfig",
    "PolyModule",
    "RunCheckpoint",
    "ShardedStrategy",
    "Stopping",
    "count_trainable",
    "save_adapter",
    "write_atomically",
    "write_metrics",
    "write_mix",
]
