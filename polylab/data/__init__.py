"""Examples with task ids: sources, splits, mixing, batches."""

from polylab.data.datamodule import DataModule
from polylab.data.sources import JsonlFolder
from polylab.data.tasks import Example, TaskCollection, TaskData, TaskSource

__all__ = ["DataModule", "Example", "JsonlFolder", "TaskCollection", "TaskData", "TaskSource"]
