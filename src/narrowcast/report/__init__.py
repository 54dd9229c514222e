"""Floor 8: a finished comparison as one HTML page that opens offline."""

from narrowcast.report.findings import summary
from narrowcast.report.page import render, write
from narrowcast.report.schema import load

__all__ = ["load", "render", "summary", "write"]
