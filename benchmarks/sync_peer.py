"""One of the other blocking clients, in an environment of its own: gets keys in threads and prints what each call took.

Arguments: the client (`tikv-python` or `tikv-client`), PD's address, threads, operations.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from threads import in_threads


def main() -> None:
    client, address, threads, operations = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    get = {"tikv-python": tikv_python, "tikv-client": tikv_client}[client](address)
    in_threads(threads, operations // 10, get)
    print(json.dumps(in_threads(threads, operations, get)), flush=True)


def tikv_python(address: str) -> Callable[[bytes], Any]:
    from tikv import RawClient  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    client = RawClient([address])
    get: Callable[[bytes], Any] = client.get
    return get


def tikv_client(address: str) -> Callable[[bytes], Any]:
    from tikv_client import RawClient  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    client = RawClient.connect([address])
    get: Callable[[bytes], Any] = client.get
    return get


if __name__ == "__main__":
    main()
