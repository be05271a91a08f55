"""HTTP endpoints on the fast path, probes, and their bodies."""
