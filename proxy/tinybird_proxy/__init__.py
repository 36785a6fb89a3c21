"""A batching proxy for Tinybird's Events API."""

__version__ = "0.1.0"
