"""HTTP over httpx2, on any event loop: the only client module that touches it. It comes with `tikv-pd[http]`."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import anyio
import attrs
import httpx2

from tikv_pd._services.http import HttpAnswer
from tikv_pd._tls import Material, MaterialOnDisk
from tikv_pd.config import SecurityConfig
from tikv_pd.errors import ConfigError, RpcError


@attrs.define(eq=False)
class _Pool:
    """Connections made with the same TLS material."""

    client: httpx2.AsyncClient
    material: Material | None
    scopes: set[anyio.CancelScope] = attrs.field(factory=set)
    """One for each request under way."""
    is_retired: bool = False
    closed: anyio.Event = attrs.field(factory=anyio.Event)

    async def close_once_unused(self) -> None:
        """Close it when it is retired and nobody uses it, whoever finds it so."""
        if self.is_retired and not self.scopes:
            with anyio.CancelScope(shield=True):
                await self.client.aclose()
            self.closed.set()


class HttpxTransport:
    """HTTP with connections that are kept for the next request. Nothing of it is read from the environment.

    Args:
        security: TLS material; None for plain text. Its files are looked at before each request; when they were
            replaced, new connections are made.

    Raises:
        ConfigError: the TLS material cannot be used.
    """

    def __init__(self, security: SecurityConfig | None = None) -> None:
        self._security = security
        self._on_disk = MaterialOnDisk(security) if security is not None else None
        self._scheme = "http" if security is None else "https"
        name = security.server_name if security is not None else None
        self._extensions = {} if name is None else {"sni_hostname": name}
        self._is_closed = False
        self._pool = self._new_pool(self._on_disk.current() if self._on_disk is not None else None)

    async def get(self, address: str, target: str, *, headers: Mapping[str, str], timeout: float) -> HttpAnswer:
        """Return the answer to a GET."""
        await self._follow_rotation()
        if self._is_closed:
            raise _closed(address, target)
        pool = self._pool
        with anyio.CancelScope(deadline=anyio.current_time() + timeout) as scope:
            pool.scopes.add(scope)
            try:
                response = await pool.client.get(
                    f"{self._scheme}://{address}{target}", headers=headers, extensions=self._extensions
                )
                return HttpAnswer(response.status_code, response.content)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise RpcError(address, f"GET {target}", "UNAVAILABLE", _why(error)) from error
            finally:
                pool.scopes.discard(scope)
                await pool.close_once_unused()
        if self._is_closed:
            raise _closed(address, target)
        raise RpcError(address, f"GET {target}", "DEADLINE_EXCEEDED", f"no answer within {timeout:g} s")

    async def aclose(self) -> None:
        """Close every connection; requests under way fail."""
        self._is_closed = True
        pool = self._pool
        pool.is_retired = True
        for scope in pool.scopes:
            scope.cancel()
        await pool.close_once_unused()
        await pool.closed.wait()

    async def _follow_rotation(self) -> None:
        material = self._on_disk.current() if self._on_disk is not None else None
        if self._is_closed or material == self._pool.material:
            return
        try:
            renewed = self._new_pool(material)
        except ConfigError:
            return  # Half of it was replaced since it was read.
        retired, self._pool = self._pool, renewed
        retired.is_retired = True
        await retired.close_once_unused()

    def _new_pool(self, material: Material | None) -> _Pool:
        verify = _context(self._security) if self._security is not None else False
        return _Pool(httpx2.AsyncClient(verify=verify, trust_env=False, timeout=None), material)


def _why(error: BaseException) -> str:
    """Return the words of an error, or of the one below it that has any: what went wrong with TLS lies deep."""
    below: BaseException | None = error
    while below is not None:
        if str(below):
            return str(below)
        below = below.__cause__ or below.__context__
    return type(error).__name__


def _closed(address: str, target: str) -> RpcError:
    return RpcError(address, f"GET {target}", "CANCELLED", "the connection was closed")


def _context(security: SecurityConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(security.ca_path)
        if security.cert_path is not None:
            # See _tls: without a password OpenSSL would ask for one.
            context.load_cert_chain(security.cert_path, security.key_path, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(f"TLS material cannot be used: {error}") from error
    return context
