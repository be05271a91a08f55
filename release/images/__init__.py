"""Build, list, describe, and remove images."""
