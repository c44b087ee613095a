"""RawClient: TiKV as a key-value store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, get_args

import attrs
from tikv_pd import Address, SecurityConfig
from tikv_pd.lowlevel import Transport
from tikv_rpc import Interceptor, Priority, ReplicaRead, RequestOptions, RpcObserver, RpcStats
from tikv_rpc.frontend.arguments import check_kind, check_timeout
from tikv_rpc.frontend.session import Endpoint

from tikv_raw._arguments import check_cf
from tikv_raw._calls import Defaults
from tikv_raw._session import RawSession
from tikv_raw.config import ApiVersion, RawConfig
from tikv_raw.ranges import RangeOperations


class RawClient(RangeOperations):
    """A client of TiKV's raw key-value API. Use inside `async with`; any number of tasks may share it.

    Keys and values are bytes-like; ranges are half-open, an empty end is unbounded. Every call takes a `timeout` in
    seconds that covers all its retries. Regions that split, merge or move their leader are followed without the
    caller's notice. Stores do not order plain writes with `compare_and_swap`, nor the writes of one key by several
    tasks: see `RawConfig.atomic`.

    Args:
        address: PD: `tikv://pd1:2379,pd2:2379`, one `host:port`, or several. A URL may name a keyspace:
            `tikv://pd:2379?keyspaceName=users`.
        api_version: What the cluster's `storage.api-version` is; by default `v2` when a keyspace is named, else `v1`.
        keyspace: Name of the keyspace under API v2, `DEFAULT` when none is named.
        cf: Column family of calls that name none.
        config: Limits and defaults.
        security: TLS; None for plain text.
        interceptors: What runs around every attempt at a store, the first outermost; see `tikv_rpc.Interceptor`.
        observers: Who hears of every call, its attempts and its waits; see `tikv_rpc.RpcObserver`.
        transport: How to reach servers; gRPC by default.

    Raises:
        ConfigError: an argument can never work.
        TypeError: an argument is of the wrong type.

    Opening it may raise:
        PdUnavailable: no PD answered within `config.pd.open_timeout`, or none of the addresses is a PD.
        ClusterMismatch: the addresses belong to different clusters.
        KeyspaceNotFound: there is no such enabled keyspace.
        ConfigError: the client is open already, or TLS material cannot be read.
        ClosedError: another task closed it meanwhile.

    Every call may raise:
        TypeError: an argument is of the wrong type; a `str` must be encoded. Nothing was sent.
        ConfigError: an argument can never work. Nothing was sent.
        ClosedError: the client is not open, or was closed meanwhile.
        DeadlineExceeded: time ran out; a write had no effect.
        RawError: a store refused, for example because the client's API version is not the cluster's.
        CodecError: the cluster does not speak the client's API version.
        FlashbackInProgress: an administrator sets the data back to an earlier time.
        PdError, ClusterMismatch, RpcError: PD or a store refused for good.

    Every write may also raise:
        UndeterminedError: the write, or a part of it, may or may not have been applied.
        EntryTooLarge: it exceeds raft's entry limit, 8 MiB by default.

    Cancelling a read leaves nothing behind. A write that is cancelled may or may not take effect.

    Source: client-go rawkv.Client.
    """

    def __init__(
        self,
        address: Address,
        *,
        api_version: ApiVersion | None = None,
        keyspace: str | None = None,
        cf: str = "default",
        config: RawConfig | None = None,
        security: SecurityConfig | None = None,
        interceptors: Iterable[Interceptor] = (),
        observers: Iterable[RpcObserver] = (),
        transport: Transport | None = None,
    ) -> None:
        endpoint = Endpoint.of(
            address,
            api_version,
            keyspace,
            versions=get_args(ApiVersion),
            security=security,
            interceptors=interceptors,
            observers=observers,
            transport=transport,
        )
        check_kind(config, RawConfig, "config")
        config = config if config is not None else RawConfig()
        is_v2 = endpoint.keyspace is not None
        defaults = Defaults(config.timeout, check_cf(cf, several=not is_v2), config.atomic, RequestOptions())
        super().__init__(RawSession(endpoint, config, has_ttl=is_v2 or api_version == "v1ttl"), defaults)

    async def open(self) -> Self:
        """Open the client, as `async with` does, and return it: for programs that close it elsewhere, by `aclose`.

        Cancellation: it is not open.
        """
        await self._session.open()
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client; calls under way fail with ClosedError, or UndeterminedError for a write that was sent.

        Closing twice is fine, and a closed client may be opened again. Any task of the event loop may close it,
        whichever opened it; all who do return when it is closed.

        Raises:
            ConfigError: it was opened in another event loop.

        Cancellation: the client is closed all the same.
        """
        await self._session.aclose()

    def with_options(
        self,
        *,
        timeout: float | None = None,
        cf: str | None = None,
        atomic: bool | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
        match_labels: Mapping[str, str] | None = None,
        request_source: str | None = None,
        resource_group: str | None = None,
        requests: RequestOptions | None = None,
    ) -> Self:
        """Return a view of this client whose calls use other options; this client is not changed.

        A view works on the connection of the client it is derived from, costs nothing to make, and may be derived
        again. Opening or closing any of them opens or closes all.

        Args:
            timeout: Seconds that a call may take that names none; of a scan, each page.
            cf: Column family of calls that name none.
            atomic: Whether writes are ordered with `compare_and_swap`; see `RawConfig.atomic`.
            priority: How stores order requests.
            replica_read: Which replica serves reads.
            match_labels: Labels of the stores, such as `{"zone": "a"}`, whose replicas are preferred.
            request_source: Who asks, for the stores' statistics and limits.
            resource_group: On whose account. Stores see it; an interceptor of `tikv_rpc.resource_control` limits it.
            requests: All that stores may be asked for, in place of what this client asks; the options above go on top.

        Returns:
            The view; what is None stays as it is.

        Raises:
            ConfigError, TypeError: an option has a value that can never work.
        """
        given = self._defaults
        options = given.options
        if requests is not None:
            if not isinstance(requests, RequestOptions):
                raise TypeError(f"requests must be RequestOptions, not {type(requests).__name__}")
            options = requests
        if match_labels is not None and not isinstance(match_labels, Mapping):
            raise TypeError(f"match_labels must be a mapping, not {type(match_labels).__name__}")
        if atomic is not None and not isinstance(atomic, bool):
            raise TypeError(f"atomic must be a bool, not {type(atomic).__name__}")
        wanted: dict[str, Any] = {
            "priority": priority,
            "replica_read": replica_read,
            "match_labels": None if match_labels is None else tuple(match_labels.items()),
            "request_source": request_source,
            "resource_group": resource_group,
        }
        changes = {name: value for name, value in wanted.items() if value is not None}
        return self._derive(
            Defaults(
                given.timeout if timeout is None else check_timeout(timeout),
                self._cf_or(cf),
                given.atomic if atomic is None else atomic,
                attrs.evolve(options, **changes) if changes else options,
            )
        )

    def stats(self) -> RpcStats:
        """Return how the client and its stores do: values, counted since the client was opened.

        Raises:
            ClosedError: the client is not open.
        """
        opened = self._session.opened or self._session.not_open()
        return opened.rpc.stats()
