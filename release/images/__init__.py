"""Build, describe, and remove the container images of this project."""
