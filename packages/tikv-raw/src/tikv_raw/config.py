"""Options of the raw client, composed of those of each layer."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs
from attrs import validators
from tikv_pd import PdConfig
from tikv_pd.config import at_most, number, positive, whole_number
from tikv_region import RegionConfig
from tikv_rpc import RpcConfig

ApiVersion: TypeAlias = Literal["v1", "v1ttl", "v2"]
"""The cluster's `storage.api-version`: `v1`, `v1ttl` (V1 with `storage.enable-ttl`) or `v2`."""


@attrs.frozen(kw_only=True)
class RawConfig:
    """How the raw client works. Durations in seconds."""

    timeout: float = attrs.field(default=30.0, validator=[number, positive])
    """What a call may take in all, with every retry, unless it says otherwise. For a scan: what each page may take."""
    atomic: bool = attrs.field(default=False, validator=validators.instance_of(bool))
    """Whether plain writes are ordered with `compare_and_swap`; slower, and needed only for keys written both ways.

    All writers of such keys must agree on it. Source: client-go SetAtomicForCAS.
    """
    batch_keys: int = attrs.field(default=1024, validator=[whole_number, positive])
    """Keys in one batch request at most."""
    batch_bytes: int = attrs.field(default=1 << 20, validator=[whole_number, positive])
    """Bytes of keys and values after which a batch request is closed; one larger pair still travels, alone.

    For `batch_get` the bytes of the answer, judged by the answers before.
    """
    scan_page: int = attrs.field(default=1024, validator=[whole_number, positive, at_most(2**32 - 1)])
    """Pairs fetched at once by a scan, below 2**32. Client-go's limit for one request is 10,240."""
    scan_bytes: int = attrs.field(default=4 << 20, validator=[whole_number, positive])
    """Bytes of keys and values fetched at once by a scan, about.

    Fewer pairs are asked for when those before were large, in the first page of a scan, and after a page that took too
    long. Stores know no such limit, so a page holds more where values suddenly grow.
    """
    max_key_bytes: int = attrs.field(default=8 << 10, validator=[whole_number, positive])
    """Longest key that may be written, under API v2 with its prefix of 4 bytes: `storage.max-key-size` of stores."""
    max_value_bytes: int = attrs.field(default=7 << 20, validator=[whole_number, positive])
    """Largest value that may be written; with its key it has to fit `raftstore.raft-entry-max-size`, 8 MiB."""
    pd: PdConfig = attrs.field(factory=PdConfig)
    """Talking to PD."""
    region: RegionConfig = attrs.field(factory=RegionConfig)
    """Remembering Regions."""
    rpc: RpcConfig = attrs.field(factory=RpcConfig)
    """Talking to stores."""
