"""The typed Python client of a running Shoal, synchronous and asynchronous."""

from shoal.client.client import AsyncShoal, Shoal

__all__ = ["AsyncShoal", "Shoal"]
