"""TLS material as it is on disk, checked before it is used, and read again when connecting fails.

gRPC reads certificates once for each channel and has no way to hand it newer ones. An established connection needs
none; it is the next handshake that fails when files were replaced. So a failure to connect is the moment to look at
them, and content that did not change, or does not fit together because its replacement is half done, changes nothing.
"""

from __future__ import annotations

import ssl

import attrs

from tikv_pd.config import SecurityConfig
from tikv_pd.errors import ConfigError


@attrs.frozen
class Material:
    """What a channel is made with, each as PEM."""

    ca: bytes
    """Authorities to trust."""
    cert: bytes | None
    """The client's certificate chain."""
    key: bytes | None = attrs.field(repr=False)
    """The client's private key."""


def read(security: SecurityConfig) -> Material:
    """Return the material as it is on disk now.

    Raises:
        ConfigError: a file cannot be read, holds no PEM, or certificate and key do not belong together.
    """
    material = Material(*security.load())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=material.ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:  # The latter for an empty file.
        raise ConfigError(f"{security.ca_path} holds no certificate in PEM form: {error}") from error
    if security.cert_path is not None:
        try:
            # Without a password at hand, OpenSSL would ask for that of an encrypted key on the terminal.
            context.load_cert_chain(security.cert_path, security.key_path, password="")
        except (OSError, ValueError) as error:
            paths = f"{security.cert_path} and {security.key_path}"
            raise ConfigError(f"{paths} are no certificate with its unencrypted key: {error}") from error
    return material


class MaterialOnDisk:
    """The last material that could be used.

    Args:
        security: Where it is.

    Raises:
        ConfigError: it cannot be used, to begin with.
    """

    def __init__(self, security: SecurityConfig) -> None:
        self.security = security
        """Where it is."""
        self._last = read(security)

    def current(self) -> Material:
        """Return what is on disk now; what was there before while that cannot be used."""
        try:
            self._last = read(self.security)
        except ConfigError:
            return self._last
        return self._last
