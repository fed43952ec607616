"""The page of attention results."""

from analyses import report


def page(named, *, matrix="pattern", top_k=3, skip_first=True):
    return report.Page("x")
