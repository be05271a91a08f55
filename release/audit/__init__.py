"""Check locks, images, and the cluster for vulnerabilities and end-of-life dates: `make audit`."""
