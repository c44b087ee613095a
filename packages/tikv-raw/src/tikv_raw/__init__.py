"""TiKV as a key-value store.

`RawClient` is the client, `Scan` the iterator it returns, `CasResult` and `Checksum` its results, `RawConfig` its
options; errors are re-exported from the layers below.
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
    RegionConfig as RegionConfig,
)
from tikv_rpc import RpcConfig as RpcConfig

from tikv_raw._requests import CasResult as CasResult, Checksum as Checksum
from tikv_raw.client import RawClient as RawClient
from tikv_raw.config import ApiVersion as ApiVersion, RawConfig as RawConfig
from tikv_raw.errors import RawError as RawError
from tikv_raw.scan import Scan as Scan
