"""Where tasks come from."""

from polylab.data.sources.jsonl import JsonlFolder

__all__ = ["JsonlFolder"]
