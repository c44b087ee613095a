"""Every RPC of the wire: `services.Tikv.RawGet` is its path, messages, streaming and BatchCommands field.

The stub beside this module types each of them.
"""

from tikv_proto._services import Rpc as Rpc
from tikv_proto._services import Service
from tikv_proto._services import all_rpcs as all_rpcs
from tikv_proto._services import services


def __getattr__(name: str) -> Service:
    service = services().get(name)
    if service is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return service


def __dir__() -> list[str]:
    return ["Rpc", "all_rpcs", *services()]
