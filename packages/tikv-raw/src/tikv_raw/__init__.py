"""TiKV as a key-value store.

`RawClient` is the client, `Scan` the iterator it returns, `CasResult`, `Checksum`, `BatchOutcome` and
`CoprocessorAnswer` its results, `RawConfig` its options, `RequestOptions`, `Priority` and `ReplicaRead` those of its
requests; errors and ranges are re-exported from the layers below.
"""

from tikv_pd import (
    Address as Address,
    BackoffExceeded as BackoffExceeded,
    ClosedError as ClosedError,
    ClusterMismatch as ClusterMismatch,
    ConfigError as ConfigError,
    DeadlineExceeded as DeadlineExceeded,
    KeyspaceNotFound as KeyspaceNotFound,
    PdConfig as PdConfig,
    PdError as PdError,
    PdUnavailable as PdUnavailable,
    RpcError as RpcError,
    SecurityConfig as SecurityConfig,
    TikvError as TikvError,
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
    Priority as Priority,
    ReplicaRead as ReplicaRead,
    RequestOptions as RequestOptions,
    RpcConfig as RpcConfig,
)

from tikv_raw._batches import BatchOutcome as BatchOutcome
from tikv_raw._many_ranges import CoprocessorAnswer as CoprocessorAnswer
from tikv_raw._requests import CasResult as CasResult, Checksum as Checksum
from tikv_raw.client import RawClient as RawClient
from tikv_raw.config import ApiVersion as ApiVersion, RawConfig as RawConfig
from tikv_raw.errors import KeyTooLarge as KeyTooLarge, RawError as RawError, ValueTooLarge as ValueTooLarge
from tikv_raw.scan import Scan as Scan
