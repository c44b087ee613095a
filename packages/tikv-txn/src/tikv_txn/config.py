"""Options of the transactional client, composed of those of each layer."""

from __future__ import annotations

from typing import Final

import attrs
from attrs import validators
from tikv_pd import PdConfig
from tikv_pd.config import at_most, not_negative, number, positive, whole_number
from tikv_region import RegionConfig
from tikv_rpc import RpcConfig

from tikv_txn.options import TransactionOptions

_count: Final = [whole_number, positive]
_seconds: Final = [number, positive]


@attrs.frozen(kw_only=True)
class TxnConfig:
    """How the transactional client works. Durations in seconds."""

    timeout: float = attrs.field(default=30.0, validator=_seconds)
    """What a call may take in all, with every retry, unless it says otherwise: a read, a commit, a page of a scan."""
    run_timeout: float = attrs.field(default=60.0, validator=_seconds)
    """How long `TransactionClient.run` begins the work anew, unless it says otherwise."""
    transaction: TransactionOptions = attrs.field(
        factory=TransactionOptions, validator=validators.instance_of(TransactionOptions)
    )
    """Options of transactions that are begun without any."""
    max_key_bytes: int = attrs.field(default=8 << 10, validator=_count)
    """Longest key that may be written, as stores keep it: with the prefix of API v2, and 9 bytes for each 8 begun.

    `storage.max-key-size` of stores; for the default, 7,279 bytes as the caller sees them, 4 less under API v2.
    """
    scan_page: int = attrs.field(default=256, validator=[*_count, at_most(2**32 - 1)])
    """Pairs fetched at once by a scan, below 2**32. Source: client-go DefaultScanBatchSize."""
    scan_bytes: int = attrs.field(default=4 << 20, validator=_count)
    """Bytes of keys and values fetched at once by a scan, about.

    Fewer pairs are asked for when those before were large, in the first page of a scan, and after a page that took too
    long. Stores know no such limit, so a page holds more where values suddenly grow.
    """
    batch_get_keys: int = attrs.field(default=5120, validator=_count)
    """Keys in one request of `batch_get` at most. Source: client-go batchGetSize."""
    batch_get_bytes: int = attrs.field(default=8 << 20, validator=_count)
    """Bytes that the answer to one request of `batch_get` may have, about, judged by the answers before."""
    snapshot_cache_bytes: int = attrs.field(default=4 << 20, validator=[whole_number, not_negative])
    """Bytes of keys and values that a snapshot keeps to read them again, about, those read first forgotten first.

    0 keeps none. Each transaction has a snapshot of its own.
    """
    commit_batch_bytes: int = attrs.field(default=16 << 10, validator=_count)
    """Bytes after which a request of a commit is closed; one larger entry still travels, alone.

    Source: client-go TxnCommitBatchSize.
    """
    commit_concurrency: int = attrs.field(default=128, validator=_count)
    """Requests that one commit keeps under way. Source: client-go CommitterConcurrency."""
    lock_ttl: float = attrs.field(default=3.0, validator=_seconds)
    """How long locks of a small transaction last when its client vanishes. Source: client-go defaultLockTTL."""
    managed_lock_ttl: float = attrs.field(default=20.0, validator=_seconds)
    """How long locks of a large transaction last, at most, and what a heartbeat, sent twice as often, extends them by.

    Source: client-go ManagedLockTTL.
    """
    heartbeat_bytes: int = attrs.field(default=32 << 20, validator=_count)
    """Bytes of keys and values above which a commit keeps its primary lock alive.

    Source: client-go TTLRefreshedTxnSize.
    """
    max_heartbeat: float = attrs.field(default=3600.0, validator=_seconds)
    """Seconds since its start that a transaction's locks are kept alive at most. Source: client-go MaxTxnTTL."""
    async_commit_keys: int = attrs.field(default=256, validator=_count)
    """Keys of an async commit at most. Source: client-go AsyncCommit.KeysLimit."""
    async_commit_key_bytes: int = attrs.field(default=4096, validator=_count)
    """Bytes of all keys of an async commit at most. Source: client-go AsyncCommit.TotalKeySizeLimit."""
    async_commit_window: float = attrs.field(default=2.0, validator=_seconds)
    """Seconds, counted from its beginning, that the timestamp of an async or one-phase commit may lie ahead.

    A store that would need more has the transaction commit in two phases. Source: client-go AsyncCommit.SafeWindow.
    """
    resolved_transactions: int = attrs.field(default=2048, validator=_count)
    """Transactions whose fate is remembered once it was learned from their locks.

    Source: client-go ResolvedCacheSize.
    """
    resolve_lite_keys: int = attrs.field(default=512, validator=_count)
    """Keys a transaction has in a Region from which on all its locks there are resolved at once, not one by one.

    Source: client-go ResolveLockLiteThreshold.
    """
    background_tasks: int = attrs.field(default=1000, validator=_count)
    """Clean-ups of other transactions' locks that are under way at once; further ones wait."""
    close_timeout: float = attrs.field(default=2.0, validator=[number, not_negative])
    """Seconds that closing the client waits for the work of commits in the background; 0 to wait for none.

    What is left undone keeps others waiting until locks expire.
    """
    pd: PdConfig = attrs.field(factory=PdConfig)
    """Talking to PD."""
    region: RegionConfig = attrs.field(factory=RegionConfig)
    """Remembering Regions."""
    rpc: RpcConfig = attrs.field(factory=RpcConfig)
    """Talking to stores."""
