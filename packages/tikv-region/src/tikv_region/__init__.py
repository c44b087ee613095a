"""Where keys live: caches of Regions and stores, key codecs, and what an error of a Region means.

`RegionCache` finds Regions and learns from errors; `RegionEntry` and `StoreEntry` are what it knows. `KeyCodec` has
one implementation for each API version. `decide` is the table of Region errors. `tikv_region.testing` builds
clusters in memory.
"""

from tikv_region.cache import RegionCache as RegionCache
from tikv_region.codec import (
    KeyCodec as KeyCodec,
    KeyspaceCodec as KeyspaceCodec,
    PlainCodec as PlainCodec,
    TxnV1Codec as TxnV1Codec,
    memcomparable_decode as memcomparable_decode,
    memcomparable_encode as memcomparable_encode,
    split_keyspace as split_keyspace,
)
from tikv_region.config import RegionConfig as RegionConfig
from tikv_region.errors import (
    CacheAction as CacheAction,
    CodecError as CodecError,
    Decision as Decision,
    EntryTooLarge as EntryTooLarge,
    FlashbackInProgress as FlashbackInProgress,
    FlashbackNotPrepared as FlashbackNotPrepared,
    InvalidTimestamp as InvalidTimestamp,
    KnownRegion as KnownRegion,
    Next as Next,
    RegionError as RegionError,
    RegionUnavailable as RegionUnavailable,
    StoreUnavailable as StoreUnavailable,
    decide as decide,
)
from tikv_region.health import Liveness as Liveness, SlowScore as SlowScore, StoreHealth as StoreHealth
from tikv_region.keys import decode_keys as decode_keys, encode_keys as encode_keys
from tikv_region.ranges import KeyRange as KeyRange, prefix_range as prefix_range
from tikv_region.redaction import RedactedKey as RedactedKey, Redaction as Redaction, redact as redact
from tikv_region.region import (
    EngineKind as EngineKind,
    InvalidReason as InvalidReason,
    RegionEntry as RegionEntry,
    StoreEntry as StoreEntry,
)
from tikv_region.source import RegionSource as RegionSource
