"""What a client shares with its transactions and snapshots while it is open."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

import attrs
from tikv_rpc.frontend.session import Endpoint, Session, connect

from tikv_txn._commit.committer import Committer
from tikv_txn._commit.starts import Starts
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._store import TxnStore
from tikv_txn.config import TxnConfig
from tikv_txn.snapshot import Reads


@attrs.frozen
class Opened:
    """What an open client works with: made once, shared by all its transactions and snapshots."""

    store: TxnStore
    """The cluster."""
    reads: Reads
    """What its snapshots share."""
    committer: Committer
    """Commits its transactions."""
    starts: Starts = attrs.field(factory=Starts)
    """Knows which transactions have committed."""


class TxnSession(Session[Opened]):
    """The connection of a client to a cluster.

    Args:
        endpoint: Where to.
        config: Limits.
    """

    def __init__(self, endpoint: Endpoint, config: TxnConfig) -> None:
        super().__init__("TransactionClient", endpoint)
        self.config: Final = config

    async def connect(self, stack: AsyncExitStack) -> Opened:
        """Connect; the stack disconnects."""
        config = self.config
        cluster = await connect(stack, self.endpoint, b"x", config.pd, config.region, config.rpc)
        store = TxnStore(cluster.rpc, cluster.pd, cluster.codec, config)
        resolver = LockResolver(store)
        committer = Committer(store, resolver)
        # The first to run when the client is closed: locks left behind would be in the way of others.
        stack.push_async_callback(committer.finish)
        return Opened(store, Reads(store, resolver), committer)
