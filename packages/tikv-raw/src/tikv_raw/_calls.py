"""How the calls of a client and its views begin: the open connection, and options with their defaults."""

from __future__ import annotations

from typing import Self

import attrs
from tikv_rpc import Call, Priority, ReplicaRead, RequestOptions
from tikv_rpc.frontend.arguments import check_timeout

from tikv_raw._arguments import check_cf
from tikv_raw._requests import RawRequests
from tikv_raw._session import Opened, RawSession


@attrs.frozen
class Defaults:
    """What a call uses that says nothing else."""

    timeout: float
    """Seconds."""
    cf: str
    """Column family as on the wire."""
    atomic: bool
    """Whether writes are ordered with compare-and-swaps."""
    options: RequestOptions
    """What is wanted of the stores."""


class Calls:
    """Base of what a client can do."""

    def __init__(self, session: RawSession, defaults: Defaults) -> None:
        self._session = session
        self._defaults = defaults
        self._variants: dict[tuple[Priority | None, ReplicaRead | None], RequestOptions] = {}

    def _derive(self, defaults: Defaults) -> Self:
        """Return a view with other defaults on the same connection."""
        view = self.__class__.__new__(self.__class__)
        Calls.__init__(view, self._session, defaults)
        return view

    def _begin(
        self,
        opened: Opened,
        operation: str,
        timeout: float | None,
        priority: Priority | None,
        replica_read: ReplicaRead | None = None,
    ) -> Call:
        return opened.rpc.call(operation, self._seconds(timeout), self._options(priority, replica_read))

    def _seconds(self, timeout: float | None) -> float:
        return self._defaults.timeout if timeout is None else check_timeout(timeout)

    def _options(self, priority: Priority | None, replica_read: ReplicaRead | None = None) -> RequestOptions:
        if priority is None and replica_read is None:
            return self._defaults.options
        return self._varied(priority, replica_read)

    def _varied(self, priority: Priority | None, replica_read: ReplicaRead | None) -> RequestOptions:
        """Return the options of a call with its own ones; kept, as their wire form is built once."""
        varied = self._variants.get((priority, replica_read))
        if varied is None:
            varied = self._defaults.options
            if priority is not None:
                varied = attrs.evolve(varied, priority=priority)
            if replica_read is not None:
                varied = attrs.evolve(varied, replica_read=replica_read)
            self._variants[priority, replica_read] = varied
        return varied

    def _cf_or(self, cf: str | None) -> str:
        if cf is None:
            return self._defaults.cf
        return check_cf(cf, several=self._session.endpoint.keyspace is None)

    def _writes(self, opened: Opened) -> RawRequests:
        return opened.atomic_requests if self._defaults.atomic else opened.requests
