"""TLS of the cluster's ports."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import attrs
import grpc

from tikv_embedded.errors import OptionError


@attrs.frozen(kw_only=True)
class ServerSecurity:
    """Where the certificates of all ports of a cluster are, in PEM form.

    They are read when a port opens, so a member or store that is stopped and started has the files of then.
    """

    cert_path: Path = attrs.field(converter=Path)
    """The servers' certificate, with intermediate ones behind it; it must be good for `host`."""
    key_path: Path = attrs.field(converter=Path)
    """Its private key, not encrypted."""
    client_ca_path: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """Authorities of which clients must show a certificate; None asks clients for none."""

    def check(self) -> None:
        """Raise OptionError if a file cannot be used."""
        self.context()

    def context(self) -> ssl.SSLContext:
        """Return what a port needs that ends TLS itself.

        Raises:
            OptionError: a file cannot be read, or is not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # gRPC speaks to none that does not agree on HTTP/2.
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            # Without a password at hand, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.cert_path, self.key_path, password="")
            if self.client_ca_path is not None:
                context.load_verify_locations(self.client_ca_path)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:
            raise OptionError(f"{_names(self)} cannot be used for TLS: {error}") from error
        return context

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a gRPC port needs.

        Raises:
            OptionError: a file cannot be read, or is not what it should be.
        """
        self.check()
        authorities = None if self.client_ca_path is None else self.client_ca_path.read_bytes()
        pair = self.key_path.read_bytes(), self.cert_path.read_bytes()
        return grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)


def _names(security: ServerSecurity) -> str:
    paths = security.cert_path, security.key_path, security.client_ca_path
    return ", ".join(os.fspath(path) for path in paths if path is not None)
