"""The second model of request units: weights on what a store says it did. Observed beside the first, never paid with.

Source: client-go config/ruv2.go and config/client.go, fitted there to stay close to the first model.
"""

from __future__ import annotations

import attrs
from tikv_proto import kvrpcpb


@attrs.frozen(kw_only=True)
class RuV2Weights:
    """What each thing costs, before `scale`. Source: client-go RUV2TiKVConfig, kvrpcpb.RUV2."""

    scale: float = 2.10
    """Applied to the sum."""
    engine_cache_miss: float = 0.45975389
    """A block that was not in the engine's cache."""
    executor_inputs: float = 0.0000315
    """A row that went into an executor of the coprocessor."""
    executor_iterations: float = 0.05775369
    """A round of an executor of the coprocessor."""
    coprocessor_response_bytes: float = 0.00000087
    """A byte of a coprocessor's response."""
    raftstore_write_bytes: float = 0.000061
    """A byte of a write batch that raftstore made."""
    batch_get_keys: float = 0.00266791
    """A key read among others."""
    get_keys: float = 0.01416829
    """A key read by itself."""
    write_rpcs: float = 0.09642181
    """A write."""

    def cost(self, counters: kvrpcpb.RUV2, *, is_write: bool) -> float:
        """Return the request units of one answered request.

        Args:
            counters: What the store counted for it.
            is_write: Whether it was a write; the request itself counts as one, besides those the store counted.
        """
        inputs: int = sum(value for _, value in counters.executor_inputs.ListFields())
        return self.scale * (
            self.engine_cache_miss * counters.kv_engine_cache_miss
            + self.executor_inputs * inputs
            + self.executor_iterations * counters.coprocessor_executor_iterations
            + self.coprocessor_response_bytes * counters.coprocessor_response_bytes
            + self.raftstore_write_bytes * counters.raftstore_store_write_trigger_wb_bytes
            + self.batch_get_keys * counters.storage_processed_keys_batch_get
            + self.get_keys * counters.storage_processed_keys_get
            + self.write_rpcs * (counters.write_rpc_count + is_write)
        )
