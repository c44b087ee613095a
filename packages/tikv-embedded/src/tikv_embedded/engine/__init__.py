"""Ordered column families below all stores.

`Engine` and `Snapshot` say what an engine promises, `WriteBatch` is what is written to one. `MemoryEngine` forgets
when it is closed; `RocksEngine` keeps its data in a directory.
"""

from tikv_embedded.engine.memory_engine import MemoryEngine as MemoryEngine
from tikv_embedded.engine.protocol import Engine as Engine, Snapshot as Snapshot
from tikv_embedded.engine.rocks_engine import RocksEngine as RocksEngine
from tikv_embedded.engine.write_batch import (
    CF_DEFAULT as CF_DEFAULT,
    CF_LOCK as CF_LOCK,
    CF_META as CF_META,
    CF_WRITE as CF_WRITE,
    COLUMN_FAMILIES as COLUMN_FAMILIES,
    DELETE as DELETE,
    DELETE_RANGE as DELETE_RANGE,
    PUT as PUT,
    Operation as Operation,
    WriteBatch as WriteBatch,
)
