"""How a client, of raw keys or of transactions, opens its connection to a cluster and closes it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AsyncExitStack
from typing import Final, Generic, Literal, Self, TypeVar

import attrs
from tikv_pd import Address, ClosedError, ConfigError, PdClient, PdConfig, SecurityConfig
from tikv_pd.lowlevel import Transport, map_hosts
from tikv_region import KeyCodec, KeyspaceCodec, PlainCodec, RegionCache, RegionConfig, TxnV1Codec

from tikv_rpc._plans.observed import ObservedRegionCache
from tikv_rpc._reports.observer import RpcObserver
from tikv_rpc.client import RpcClient
from tikv_rpc.config import RpcConfig
from tikv_rpc.frontend.arguments import as_addresses, check_kind
from tikv_rpc.frontend.host import Host
from tikv_rpc.intercept import Interceptor

Opened = TypeVar("Opened")
Mode = Literal[b"r", b"x"]
"""Which keys a client works on: raw ones, or those of transactions. Source: the prefixes of API v2."""


@attrs.frozen
class Endpoint:
    """Where the cluster is, and how to speak to it."""

    addresses: tuple[str, ...]
    """Of PD."""
    keyspace: str | None
    """Name of the keyspace; None for API V1 and V1TTL."""
    security: SecurityConfig | None
    """TLS; None for plain text."""
    interceptors: tuple[Interceptor, ...]
    """What runs around every attempt."""
    observers: tuple[RpcObserver, ...]
    """Who hears of every call."""
    transport: Transport | None
    """How to reach servers; None for gRPC."""

    @classmethod
    def of(
        cls,
        address: Address,
        api_version: str | None,
        keyspace: str | None,
        *,
        versions: Collection[str],
        security: SecurityConfig | None = None,
        interceptors: Iterable[Interceptor] = (),
        observers: Iterable[RpcObserver] = (),
        transport: Transport | None = None,
    ) -> Self:
        """Return the endpoint that a client's arguments speak of.

        Args:
            address: PD; it may name a keyspace.
            api_version: The cluster's; None for `v2` when a keyspace is named, else `v1`.
            keyspace: Name of the keyspace under API v2, None for `DEFAULT` unless the address names one.
            versions: The API versions that the client can speak.
            security: TLS.
            interceptors: What runs around every attempt.
            observers: Who hears of every call.
            transport: How to reach servers.

        Raises:
            ConfigError, TypeError: an argument can never work.
        """
        addresses, keyspace = as_addresses(address, keyspace)
        check_kind(security, SecurityConfig, "security")
        observers = tuple(observers)
        for observer in observers:
            if not callable(getattr(observer, "begin", None)):
                raise TypeError(
                    f"an observer must have a method `begin`, as RpcObserver; {type(observer).__name__} has none"
                )
        if api_version is None:
            api_version = "v1" if keyspace is None else "v2"
        if api_version not in versions:
            raise ConfigError(f"unknown api_version {api_version!r}; known are {_listed(versions)}")
        if keyspace is not None and api_version != "v2":
            raise ConfigError(f"a keyspace needs api_version='v2', not {api_version!r}")
        name = (keyspace or "DEFAULT") if api_version == "v2" else None
        return cls(addresses, name, security, tuple(interceptors), observers, transport)


@attrs.frozen
class Connection:
    """A cluster that a client is connected to."""

    pd: PdClient
    rpc: RpcClient
    codec: KeyCodec
    """Of the keys of the client's mode and keyspace."""


async def connect(
    stack: AsyncExitStack, endpoint: Endpoint, mode: Mode, pd: PdConfig, region: RegionConfig, rpc: RpcConfig
) -> Connection:
    """Connect to a cluster; the stack disconnects.

    Args:
        stack: What is left in it must be closed by the task that called this.
        endpoint: Where to.
        mode: Which keys the client works on.
        pd: Limits of talking to PD.
        region: Limits of remembering Regions.
        rpc: Limits of talking to stores.

    Raises:
        PdUnavailable, ClusterMismatch, KeyspaceNotFound, ConfigError: see `PdClient`.
    """
    transport = endpoint.transport if endpoint.transport is not None else _grpc(endpoint.security, rpc)
    transport = map_hosts(transport, pd.host_mapping)
    pd_client = PdClient(
        endpoint.addresses, keyspace=endpoint.keyspace, config=pd, security=endpoint.security, transport=transport
    )
    await stack.enter_async_context(pd_client)
    codec = _codec(pd_client, mode)
    make_cache = ObservedRegionCache if endpoint.observers or rpc.is_observing else RegionCache
    cache = make_cache(pd_client, codec, config=region, now=transport.now)
    rpc_client = RpcClient(
        cache,
        codec,
        pd_client.cluster_id,
        transport,
        rpc,
        interceptors=endpoint.interceptors,
        observers=endpoint.observers,
    )
    await stack.enter_async_context(rpc_client)
    rpc_client.tasks.start_soon(cache.run)
    return Connection(pd_client, rpc_client, codec)


class Session(Generic[Opened]):
    """A connection to a cluster that is open or not; base of those of clients.

    Args:
        client: Name of the client's class, for errors.
        endpoint: Where to.
    """

    def __init__(self, client: str, endpoint: Endpoint) -> None:
        self.opened: Opened | None = None
        """What the client works with while it is open."""
        self.endpoint: Final = endpoint
        self._client = client
        self._host: Host | None = None

    async def connect(self, stack: AsyncExitStack) -> Opened:
        """Connect; the stack disconnects."""
        raise NotImplementedError

    def not_open(self) -> Opened:
        """Raise ClosedError; if a failure ended the connection, it is the cause."""
        raise ClosedError(self._client) from (None if self._host is None else self._host.failure)

    async def open(self) -> None:
        """Connect. Any task of this event loop may close it.

        Raises:
            ConfigError: it is open already, or failed and was not closed since.
            ClosedError: it was closed meanwhile.

        Cancellation: it is not open.
        """
        host = self._host
        if host is not None and host.failure is not None:
            raise ConfigError(f"this {self._client} failed; close it before it is opened again") from host.failure
        if host is not None and not host.is_over:
            raise ConfigError(f"this {self._client} is open already; share it, or make another")
        host = self._host = Host(self._client, self._enter)
        try:
            await host.open()
        except BaseException:
            self._forget(host)
            raise

    async def aclose(self) -> None:
        """Disconnect; return when nothing is left of it. While it is being opened, end that.

        Raises:
            ConfigError: it was opened in another event loop.

        If a task of the connection failed, which ends it, the first to close it has that raised.

        Cancellation: it is closed all the same, and does not wait for anything.
        """
        host = self._host
        if host is not None:
            host.check_loop()
            self._leave()
            try:
                await host.close()
            finally:
                self._forget(host)

    async def _enter(self, stack: AsyncExitStack) -> None:
        self.opened = await self.connect(stack)
        stack.callback(self._leave)

    def _leave(self) -> None:
        self.opened = None

    def _forget(self, host: Host) -> None:
        if self._host is host and host.is_over:
            self._host = None


def _listed(versions: Collection[str]) -> str:
    *others, last = map(repr, versions)
    return f"{', '.join(others)} and {last}" if others else last


def _codec(pd: PdClient, mode: Mode) -> KeyCodec:
    if pd.keyspace is not None:
        return KeyspaceCodec(mode, pd.keyspace.id, pd.keyspace.name)
    return PlainCodec() if mode == b"r" else TxnV1Codec()


def _grpc(security: SecurityConfig | None, config: RpcConfig) -> Transport:
    # gRPC takes most of the time of an import; programs that never connect should not pay it.
    from tikv_pd.grpc_transport import GrpcTransport  # noqa: PLC0415

    return GrpcTransport(security, config.channel)
