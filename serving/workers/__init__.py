"""Processes: forked tasks, memory and locks that workers share, and the source of the model."""
