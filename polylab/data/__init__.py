"""Examples with task ids: sources, splits, mixing, batches."""

from polylab.data.datamodule import DataModule
from polylab.data.example import Example
from polylab.data.sources import JsonlFolder
from polylab.data.table import ExampleTable
from polylab.data.tasks import TaskCollection, TaskData, TaskSource

__all__ = [
    "DataModule",
    "Example",
    "ExampleTable",
    "JsonlFolder",
    "TaskCollection",
    "TaskData",
    "TaskSource",
]
