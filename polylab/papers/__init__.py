"""The figures that papers have of many runs, from the tables of a sweep or of adaptations."""

from polylab.papers.drawing import FIGURES, draw

__all__ = ["FIGURES", "draw"]
