"""Metrics in shared memory, and their text format for Prometheus."""
