"""Connections to servers of one kind, one each."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager

import anyio

from tikv_pd.errors import ClosedError
from tikv_pd.lowlevel import Connection, Transport


class Connections:
    """One connection to each server, made when first used.

    Args:
        transport: What makes them.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._open: dict[str, Connection] = {}
        self._is_closed = False
        self._waits: set[anyio.CancelScope] = set()

    def to(self, address: str) -> Connection:
        """Return the connection to an address; raises ClosedError after `aclose`."""
        self.check_open()
        connection = self._open.get(address)
        if connection is None:
            connection = self._open[address] = self._transport.connect(address)
        return connection

    def check_open(self) -> None:
        """Raise ClosedError after `aclose`."""
        if self._is_closed:
            raise ClosedError("PdClient")

    @contextmanager
    def while_open(self) -> Iterator[None]:
        """Leave a block that waits, with ClosedError, as soon as they are closed."""
        self.check_open()
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                yield
            finally:
                self._waits.discard(scope)
        if scope.cancelled_caught:
            raise ClosedError("PdClient")

    async def drop(self, address: str) -> None:
        """Close the connection to an address, if there is one; the next use makes a new one."""
        connection = self._open.pop(address, None)
        if connection is not None:
            with anyio.CancelScope(shield=True):
                await connection.aclose()

    async def keep(self, addresses: Container[str]) -> None:
        """Close the connections to all other addresses."""
        for address in [address for address in self._open if address not in addresses]:
            await self.drop(address)

    async def aclose(self) -> None:
        """Close all; using them raises ClosedError from now on."""
        self._is_closed = True
        for scope in self._waits:
            scope.cancel()
        for address in list(self._open):
            await self.drop(address)
