"""Every RPC of the wire: `services.Tikv.RawGet` is its path, messages, streaming and BatchCommands field.

The stub beside this module types each of them.
"""

from tikv_proto._services import SERVICES as _SERVICES, Rpc as Rpc, all_rpcs as all_rpcs

globals().update(_SERVICES)
