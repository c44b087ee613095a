"""Transactions on TiKV.

`TransactionClient` is the client, `Transaction`, its `Savepoint` and `TransactionScan`, and `Snapshot` with its `Scan`
are what it makes, `transactional` is a decorator for libraries. `TxnConfig` and `TransactionOptions` are the options,
`RequestOptions`, `Priority`, `ReplicaRead` and `Isolation` those of requests. `Timestamp` is the point in the cluster's
order of events that transactions read and commit at. Errors and ranges are re-exported from the layers below.
"""

from tikv_pd import (
    LATEST as LATEST,
    Address as Address,
    BackoffExceeded as BackoffExceeded,
    ClosedError as ClosedError,
    ClusterMismatch as ClusterMismatch,
    ConfigError as ConfigError,
    DeadlineExceeded as DeadlineExceeded,
    FutureTimestamp as FutureTimestamp,
    KeyspaceNotFound as KeyspaceNotFound,
    PdConfig as PdConfig,
    PdError as PdError,
    PdUnavailable as PdUnavailable,
    RpcError as RpcError,
    SecurityConfig as SecurityConfig,
    TikvError as TikvError,
    Timestamp as Timestamp,
    TimestampFallback as TimestampFallback,
    UndeterminedError as UndeterminedError,
)
from tikv_region import (
    CodecError as CodecError,
    EntryTooLarge as EntryTooLarge,
    FlashbackInProgress as FlashbackInProgress,
    KeyRange as KeyRange,
    RegionConfig as RegionConfig,
    prefix_range as prefix_range,
)
from tikv_rpc import (
    DiskFull as DiskFull,
    Isolation as Isolation,
    Priority as Priority,
    ReplicaRead as ReplicaRead,
    RequestOptions as RequestOptions,
    RpcConfig as RpcConfig,
)

from tikv_txn._arguments import AnyTimestamp as AnyTimestamp
from tikv_txn.client import (
    ApiVersion as ApiVersion,
    TransactionClient as TransactionClient,
    transactional as transactional,
)
from tikv_txn.config import TxnConfig as TxnConfig
from tikv_txn.errors import (
    AlreadyExists as AlreadyExists,
    AssertionFailed as AssertionFailed,
    CommitTsExpired as CommitTsExpired,
    CommitTsLag as CommitTsLag,
    CommitTsTooLarge as CommitTsTooLarge,
    InconsistentLocks as InconsistentLocks,
    KeyLocked as KeyLocked,
    KeyTooLarge as KeyTooLarge,
    PrimaryMismatch as PrimaryMismatch,
    SnapshotTooOld as SnapshotTooOld,
    TransactionAborted as TransactionAborted,
    TransactionEnded as TransactionEnded,
    TransactionExpired as TransactionExpired,
    TransactionNotFound as TransactionNotFound,
    TransactionRefused as TransactionRefused,
    TransactionTooLarge as TransactionTooLarge,
    ValueTooLarge as ValueTooLarge,
    WriteConflict as WriteConflict,
)
from tikv_txn.options import AssertionLevel as AssertionLevel, TransactionOptions as TransactionOptions
from tikv_txn.savepoint import Savepoint as Savepoint
from tikv_txn.scan import Scan as Scan
from tikv_txn.snapshot import Snapshot as Snapshot
from tikv_txn.transaction import Transaction as Transaction, TransactionState as TransactionState
from tikv_txn.transaction_scan import TransactionScan as TransactionScan
from tikv_txn.versioned import Versioned as Versioned
