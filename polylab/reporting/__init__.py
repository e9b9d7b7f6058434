"""The page of a finished run, sweep, adaptation or evaluation: from its files to one HTML file."""

from polylab.reporting.contents import page_contents
from polylab.reporting.page import build_page

__all__ = ["build_page", "page_contents"]
