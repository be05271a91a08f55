"""This server, its peers and the limits, measured side by side: `make bench`."""
