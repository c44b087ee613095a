"""The Placement Driver client of TiKV, and the base that every layer above shares.

`PdClient` grants timestamps and knows Regions and stores; its parts `gc`, `keyspaces`, `resource_groups`, `meta` and
`global_config` know the rest. What they return are values such as `Timestamp`, `Region`, `Peer`, `RegionEpoch`,
`Store`, `Keyspace` and `GcState`. `TikvError` is the root of every error, `Deadline` and `Backoffer` bound every
operation, `PdConfig` and `SecurityConfig` configure. The kinds of waits are in `tikv_pd.backoff`, the transport seam is
in `tikv_pd.lowlevel`, fakes for tests are in `tikv_pd.testing`.
"""

from tikv_pd._services.gc import (
    Gc as Gc,
    GcBarrier as GcBarrier,
    GcState as GcState,
    SafePointAdvance as SafePointAdvance,
)
from tikv_pd._services.http import (
    HttpAnswer as HttpAnswer,
    HttpTransport as HttpTransport,
    PdHttp as PdHttp,
)
from tikv_pd._services.http_values import (
    MemberHealth as MemberHealth,
    MinResolvedTs as MinResolvedTs,
    RegionStats as RegionStats,
    StoreStats as StoreStats,
)
from tikv_pd._services.keyspaces import (
    Keyspaces as Keyspaces,
)
from tikv_pd._services.meta_storage import (
    GlobalConfig as GlobalConfig,
    GlobalConfigChange as GlobalConfigChange,
    GlobalConfigs as GlobalConfigs,
    MetaEntries as MetaEntries,
    MetaEvent as MetaEvent,
    MetaStorage as MetaStorage,
)
from tikv_pd._services.resource_control import (
    ResourceGroupChange as ResourceGroupChange,
    ResourceGroups as ResourceGroups,
    ResourceGroupSettings as ResourceGroupSettings,
)
from tikv_pd._services.resource_groups import (
    Consumption as Consumption,
    ResourceGroup as ResourceGroup,
    Runaway as Runaway,
)
from tikv_pd._services.tokens import (
    TokenGrant as TokenGrant,
    TokenRequest as TokenRequest,
)
from tikv_pd._streams.watch import (
    Watch as Watch,
)
from tikv_pd.backoff import (
    Backoffer as Backoffer,
    BackoffKind as BackoffKind,
    Jitter as Jitter,
)
from tikv_pd.channel import (
    ChannelConfig as ChannelConfig,
)
from tikv_pd.client import (
    PdClient as PdClient,
)
from tikv_pd.config import (
    Address as Address,
    BreakerConfig as BreakerConfig,
    ClusterAddress as ClusterAddress,
    HostMapping as HostMapping,
    KeyspaceRef as KeyspaceRef,
    PdConfig as PdConfig,
    SecurityConfig as SecurityConfig,
    parse_address as parse_address,
)
from tikv_pd.deadline import (
    Deadline as Deadline,
)
from tikv_pd.errors import (
    AlreadyBootstrapped as AlreadyBootstrapped,
    BackoffExceeded as BackoffExceeded,
    CircuitOpen as CircuitOpen,
    ClosedError as ClosedError,
    ClusterMismatch as ClusterMismatch,
    ConfigError as ConfigError,
    DataCompacted as DataCompacted,
    DeadlineExceeded as DeadlineExceeded,
    DuplicatedEntry as DuplicatedEntry,
    EntryNotFound as EntryNotFound,
    FutureTimestamp as FutureTimestamp,
    GcBarrierTooOld as GcBarrierTooOld,
    IncompatibleVersion as IncompatibleVersion,
    InvalidValue as InvalidValue,
    KeyspaceNotFound as KeyspaceNotFound,
    MinResolvedTsDisabled as MinResolvedTsDisabled,
    NotBootstrapped as NotBootstrapped,
    PdError as PdError,
    PdUnavailable as PdUnavailable,
    RegionsIncomplete as RegionsIncomplete,
    RpcError as RpcError,
    StoreTombstone as StoreTombstone,
    TikvError as TikvError,
    TimestampFallback as TimestampFallback,
    UndeterminedError as UndeterminedError,
    UnknownRegion as UnknownRegion,
)
from tikv_pd.observer import (
    PdObserver as PdObserver,
)
from tikv_pd.timestamp import (
    LATEST as LATEST,
    Timestamp as Timestamp,
)
from tikv_pd.topology import (
    Buckets as Buckets,
    Keyspace as Keyspace,
    Member as Member,
    Operator as Operator,
    Peer as Peer,
    Region as Region,
    RegionEpoch as RegionEpoch,
    Store as Store,
)
