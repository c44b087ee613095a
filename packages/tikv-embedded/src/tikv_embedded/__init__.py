"""A TiKV-compatible cluster (PD and stores over gRPC, in memory or durable) in one process.

- `EmbeddedCluster` starts it, and changes its topology while it runs.
- `PdControls` (`cluster.pd`) acts on PD: its faults, its clock, its settings.
- `StoreFaults` (`cluster.faults`) lets things go wrong with stores, and records what they receive: `StoreCalls` are
  chosen, a `StoreFault` strikes them; `Recording` keeps `ReceivedCall` values.
- `Network` (`cluster.network`) freezes and cuts connections.
- `ServerSecurity` is the TLS of its ports.
- `TsoServers` (`cluster.tso`) are those that give out timestamps in PD's place, if any; `RouterServers`
  (`cluster.routers`) and `ResourceManagerServers` (`cluster.resource_managers`) do other work of PD beside it.
- `Region`, `Peer`, `RegionEpoch`, `Store`, `StoreState`: what it is made of, as values.
- `EmbeddedError` and its family: what starting or changing it can raise.

The command `tikv-embedded serve` does the same from a shell.
"""

from tikv_embedded.cluster import EmbeddedCluster as EmbeddedCluster
from tikv_embedded.errors import (
    ClusterNotRunningError as ClusterNotRunningError,
    DataDirectoryError as DataDirectoryError,
    EmbeddedError as EmbeddedError,
    OptionError as OptionError,
    PortInUseError as PortInUseError,
    TopologyError as TopologyError,
)
from tikv_embedded.network import Network as Network
from tikv_embedded.pd.controls import PdControls as PdControls
from tikv_embedded.pd.registered_servers import (
    ResourceManagerServers as ResourceManagerServers,
    RouterServers as RouterServers,
)
from tikv_embedded.pd.tso_servers import TsoServers as TsoServers
from tikv_embedded.region import (
    Peer as Peer,
    Region as Region,
    RegionEpoch as RegionEpoch,
    Store as Store,
    StoreState as StoreState,
)
from tikv_embedded.security import ServerSecurity as ServerSecurity
from tikv_embedded.store.calls import ReceivedCall as ReceivedCall, Recording as Recording
from tikv_embedded.store.fault_controls import StoreCalls as StoreCalls, StoreFaults as StoreFaults
from tikv_embedded.store.faults import StoreFault as StoreFault
