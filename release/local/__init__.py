"""Run servers as processes on this machine."""
