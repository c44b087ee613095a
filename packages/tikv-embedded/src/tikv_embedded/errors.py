"""Errors of the embedded cluster; none of them crosses the wire."""

from __future__ import annotations


class EmbeddedError(Exception):
    """Root of what the embedded cluster raises."""


class OptionError(EmbeddedError, ValueError):
    """An option of the cluster is outside its range, or contradicts what the data directory holds."""


class DataDirectoryError(EmbeddedError):
    """The data directory cannot be used: locked by another process, not a data directory of ours, or damaged."""


class PortInUseError(EmbeddedError):
    """Another process listens on the port that was asked for."""


class TopologyError(EmbeddedError):
    """A change of Regions, peers or stores is impossible as things are; nothing was changed."""


class ClusterNotRunningError(EmbeddedError):
    """The cluster was not started, or is closed."""
