"""Examples with task ids: sources, splits, mixing, batches."""

from polylab.data.datamodule import DataModule
from polylab.data.example import Example
from polylab.data.sources import (
    Combined,
    CrossFitSource,
    CsvFiles,
    FlanSource,
    HubSource,
    JsonlFolder,
    NaturalInstructions,
    P3Source,
    ParquetFiles,
    Part,
)
from polylab.data.table import ExampleTable
from polylab.data.tasks import TaskCollection, TaskData, TaskSource

__all__ = [
    "Combined",
    "CrossFitSource",
    "CsvFiles",
    "DataModule",
    "Example",
    "ExampleTable",
    "FlanSource",
    "HubSource",
    "JsonlFolder",
    "NaturalInstructions",
    "P3Source",
    "ParquetFiles",
    "Part",
    "TaskCollection",
    "TaskData",
    "TaskSource",
]
