"""Counters in shared memory and their Prometheus exposition."""
