"""Errors of releases and rollouts, which the commands print without a traceback."""

from release.kubernetes.kubectl import ClusterError


class RolloutError(ClusterError):
    """A revision does not become ready, or does not predict what its contract says."""


class ReleaseError(Exception):
    """A variable has an invalid value, or the release must not be deployed."""
