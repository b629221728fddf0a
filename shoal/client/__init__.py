"""The typed Python client of a running Shoal."""

from shoal.client.client import Shoal

__all__ = ["Shoal"]
