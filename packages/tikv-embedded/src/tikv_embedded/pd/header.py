"""The header of every PD response."""

from __future__ import annotations

from tikv_proto import pdpb


def header(cluster_id: int) -> pdpb.ResponseHeader:
    """Return the header of an answer."""
    return pdpb.ResponseHeader(cluster_id=cluster_id)


def error_header(cluster_id: int, kind: pdpb.ErrorType.ValueType, message: str) -> pdpb.ResponseHeader:
    """Return the header of a refusal that is the application's, not gRPC's."""
    return pdpb.ResponseHeader(cluster_id=cluster_id, error=pdpb.Error(type=kind, message=message))
