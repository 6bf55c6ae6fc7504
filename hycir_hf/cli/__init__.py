"""The command line: the console script `hycir`."""

from .main import main

__all__ = ["main"]
