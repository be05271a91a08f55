"""Check locked packages, end-of-life dates and images for known problems: `make audit`."""
