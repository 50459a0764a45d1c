"""The version of vqcomp; archives carry it."""

__version__ = "0.1.0"
