"""A release in a cluster: deployed, tried as a canary, promoted and rolled back as one thing."""
