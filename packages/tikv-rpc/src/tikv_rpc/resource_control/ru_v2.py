"""The second model of request units: weights on what a store says it did. Observed beside the first, never paid with.

Source: client-go config/ruv2.go and config/client.go, fitted there to stay close to the first model.
"""

from __future__ import annotations

import attrs
from tikv_proto import kvrpcpb

from tikv_rpc.resource_control.cost import PRICE


@attrs.frozen(kw_only=True)
class RuV2Weights:
    """What each thing costs, before `scale`. Source: client-go RUV2TiKVConfig, kvrpcpb.RUV2."""

    scale: float = attrs.field(default=2.10, validator=PRICE)
    """Applied to the sum."""
    engine_cache_miss: float = attrs.field(default=0.45975389, validator=PRICE)
    """A block that was not in the engine's cache."""
    executor_inputs: float = attrs.field(default=0.0000315, validator=PRICE)
    """A row that went into an executor of the coprocessor."""
    executor_iterations: float = attrs.field(default=0.05775369, validator=PRICE)
    """A round of an executor of the coprocessor."""
    coprocessor_response_bytes: float = attrs.field(default=0.00000087, validator=PRICE)
    """A byte of a coprocessor's response."""
    raftstore_write_bytes: float = attrs.field(default=0.000061, validator=PRICE)
    """A byte of a write batch that raftstore made."""
    batch_get_keys: float = attrs.field(default=0.00266791, validator=PRICE)
    """A key read among others."""
    get_keys: float = attrs.field(default=0.01416829, validator=PRICE)
    """A key read by itself."""
    write_rpcs: float = attrs.field(default=0.09642181, validator=PRICE)
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
