"""How a store keeps its keys and values: TiKV's storage API versions."""

from __future__ import annotations

import enum


class ApiMode(enum.Enum):
    """Storage mode of a whole cluster, fixed when its data is first written; values are the CLI's spellings."""

    V1 = "v1"
    """Keys and raw values as they are; raw pairs have no TTL."""
    V1TTL = "v1ttl"
    """Raw pairs only; each value carries when it expires."""
    V2 = "v2"
    """Keyspaces: raw keys begin with `r` and a keyspace id, transactional ones with `x`; raw pairs have versions."""
