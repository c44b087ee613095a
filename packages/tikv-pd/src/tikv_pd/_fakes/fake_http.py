"""The HTTP API of a `FakePd`: pages that a test writes, on the members that run."""

from __future__ import annotations

import json
from collections.abc import Mapping

import anyio
import anyio.lowlevel

from tikv_pd._fakes.fake_pd import FakePd
from tikv_pd._services.http import HttpAnswer
from tikv_pd.errors import RpcError


class FakeHttp:
    """An `HttpTransport` to the members of a `FakePd`. What it answers may be changed at any time.

    Args:
        pd: The members: those that it stopped do not answer here either.
    """

    def __init__(self, pd: FakePd) -> None:
        self._pd = pd
        self.pages: dict[str, object] = {}
        """The value that becomes JSON, or the bytes, by target: path and query. Everything else is 404."""
        self.refusals: dict[str, HttpAnswer] = {}
        """What members answer to everything, by address."""
        self.silent: set[str] = set()
        """Members that do not answer until the time is up."""
        self.requests: list[tuple[str, str]] = []
        """(address, target) of each request."""
        self.headers: list[Mapping[str, str]] = []
        """The headers of each."""
        self.is_closed = False
        """Whether `aclose` was called."""

    async def get(self, address: str, target: str, *, headers: Mapping[str, str], timeout: float) -> HttpAnswer:
        """Return the page of `target`."""
        await anyio.lowlevel.checkpoint()
        if self.is_closed:
            raise RpcError(address, f"GET {target}", "CANCELLED", "the connection was closed")
        self.requests.append((address, target))
        self.headers.append(headers)
        if not self._pd.transport.is_served(address):
            raise RpcError(address, f"GET {target}", "UNAVAILABLE", "connection refused")
        if address in self.silent:
            await anyio.sleep(timeout)
            raise RpcError(address, f"GET {target}", "DEADLINE_EXCEEDED", f"no answer within {timeout:g} s")
        if address in self.refusals:
            return self.refusals[address]
        if target not in self.pages:
            return HttpAnswer(404, b'"404 page not found"')
        page = self.pages[target]
        return HttpAnswer(200, page if isinstance(page, bytes) else json.dumps(page).encode())

    async def aclose(self) -> None:
        """Refuse everything from now on."""
        self.is_closed = True
