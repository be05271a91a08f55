"""Processes: what the master and its workers share."""
