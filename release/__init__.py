"""The tools around a release: try it here, and later see, compare, promote, roll back."""
