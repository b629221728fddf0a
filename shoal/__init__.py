"""Shoal: announced on Kafka, searchable in seconds, right while processes die."""

__version__ = "0.1.0"
