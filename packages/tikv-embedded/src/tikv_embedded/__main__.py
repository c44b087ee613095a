r"""The command `tikv-embedded`, also `python -m tikv_embedded`.

`tikv-embedded serve` runs a cluster in the foreground. Once every port answers it prints one line to stdout, `ready
URL`, and nothing else ever; SIGINT and SIGTERM stop it with exit status 0. What it refuses it says in one line on
stderr: with status 2 for a bad option, 1 for a port, an address or a data directory that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from tikv_embedded.cluster import EmbeddedCluster
from tikv_embedded.errors import EmbeddedError, OptionError
from tikv_embedded.security import ServerSecurity
from tikv_embedded.store.api_mode import ApiMode

_PROGRAM = "tikv-embedded"
_BAD_OPTION = 2
_CANNOT_SERVE = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: The words after the program's name; None takes them from `sys.argv`.
    """
    options = _parser().parse_args(arguments)
    host, port = options.pd
    try:
        _check_host(host)
        cluster = EmbeddedCluster(
            stores=options.stores,
            path=options.path,
            api_version=options.api_version,
            pd_members=options.pd_members,
            tso_servers=options.tso_servers,
            http=options.http,
            security=_security(options),
            split_keys=options.split_keys,
            keyspaces=options.keyspaces,
            host=host,
            pd_port=port,
        )
        asyncio.run(_serve(cluster))
    except OptionError as error:
        return _refuse(str(error), _BAD_OPTION)
    except EmbeddedError as error:
        return _refuse(str(error), _CANNOT_SERVE)
    except OSError as error:
        return _refuse(f"cannot listen on {host}:{port}: {error.strerror or error}", _CANNOT_SERVE)
    return 0


async def _serve(cluster: EmbeddedCluster) -> None:
    """Run the cluster until a signal asks to stop."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with cluster:
        print(f"ready {cluster.url}", flush=True)
        await stopped.wait()


def _check_host(host: str) -> None:
    """Raise OSError unless `host` is an address of this machine; gRPC would also write a page about it to stderr."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.bind(address)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the options in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(_BAD_OPTION, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, description="A TiKV-compatible cluster in one process.")
    version = importlib.metadata.version("tikv-embedded")
    parser.add_argument("--version", action="version", version=f"{_PROGRAM} {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", help="run a cluster in the foreground", description="Run a cluster until SIGINT or SIGTERM."
    )
    serve.add_argument("--path", metavar="DIR", help="data directory, made if needed (default: keep data in memory)")
    serve.add_argument(
        "--pd",
        metavar="HOST:PORT",
        type=_address,
        default="127.0.0.1:0",
        help="where PD listens; the stores take free ports of the same host (default: %(default)s, 0 = a free port)",
    )
    serve.add_argument("--stores", metavar="N", type=int, default=3, help="TiKV stores (default: %(default)s)")
    serve.add_argument(
        "--api-version",
        choices=[mode.value for mode in ApiMode],
        default=ApiMode.V1.value,
        help="storage mode, fixed for a data directory (default: %(default)s)",
    )
    serve.add_argument(
        "--pd-members",
        type=int,
        choices=(1, 3),
        default=1,
        help="PD servers; the further ones take the next ports (default: %(default)s)",
    )
    serve.add_argument(
        "--tso-servers",
        metavar="N",
        type=int,
        default=0,
        help="servers that give out timestamps in PD's place, on free ports (default: %(default)s, PD does it)",
    )
    serve.add_argument("--http", action="store_true", help="let PD's ports answer HTTP too")
    serve.add_argument("--tls-cert", metavar="FILE", help="certificate of all ports, PEM (default: no TLS)")
    serve.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    serve.add_argument("--tls-client-ca", metavar="FILE", help="authorities of which clients must show a certificate")
    serve.add_argument(
        "--split-keys",
        metavar="K1,K2,...",
        type=_split_keys,
        default=(),
        help=r"raw keys at which Regions begin; \xNN stands for a byte",
    )
    serve.add_argument(
        "--keyspaces",
        metavar="N1,N2,...",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="names of keyspaces besides DEFAULT, in mode v2",
    )
    return parser


def _security(options: argparse.Namespace) -> ServerSecurity | None:
    cert, key, client_ca = options.tls_cert, options.tls_key, options.tls_client_ca
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise OptionError("TLS needs both --tls-cert and --tls-key")
    return ServerSecurity(cert_path=cert, key_path=key, client_ca_path=client_ca)


def _address(text: str) -> tuple[str, int]:
    """Read HOST:PORT, an IPv6 host in brackets."""
    matched = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]/]+)):(\d{1,5})", text)
    if matched is None or int(matched[3]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return matched[1] or matched[2], int(matched[3])


def _split_keys(text: str) -> tuple[bytes, ...]:
    r"""Read keys separated by commas; `\xNN` stands for any byte, also a comma or a backslash."""
    keys = os.fsencode(text).split(b",")
    if not all(keys):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty key")
    return tuple(re.sub(rb"\\x([0-9a-fA-F]{2})", lambda found: bytes.fromhex(found[1].decode()), key) for key in keys)


def _refuse(reason: str, status: int) -> int:
    print(f"{_PROGRAM}: {' '.join(reason.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
