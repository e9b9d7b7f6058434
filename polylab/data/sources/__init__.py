"""Where tasks come from."""

from polylab.data.sources.combined import Combined, Part
from polylab.data.sources.crossfit import CrossFitSource
from polylab.data.sources.flan import FlanSource
from polylab.data.sources.hub import HubSource
from polylab.data.sources.jsonl import JsonlFolder
from polylab.data.sources.p3 import P3Source
from polylab.data.sources.sni import NaturalInstructions
from polylab.data.sources.tablefiles import CsvFiles, ParquetFiles

__all__ = [
    "Combined",
    "CrossFitSource",
    "CsvFiles",
    "FlanSource",
    "HubSource",
    "JsonlFolder",
    "NaturalInstructions",
    "P3Source",
    "ParquetFiles",
    "Part",
]
