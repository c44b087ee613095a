"""A TiKV-compatible cluster (PD and stores over gRPC, in memory or durable) in one process.

- `EmbeddedCluster` starts it, and changes its topology while it runs.
- `Region`, `Peer`, `RegionEpoch`, `Store`: what it is made of, as values.
- `EmbeddedError` and its family: what starting or changing it can raise.

The command `tikv-embedded serve` does the same from a shell.
"""

from tikv_embedded.cluster import EmbeddedCluster as EmbeddedCluster
from tikv_embedded.errors import ClusterNotRunningError as ClusterNotRunningError
from tikv_embedded.errors import DataDirectoryError as DataDirectoryError
from tikv_embedded.errors import EmbeddedError as EmbeddedError
from tikv_embedded.errors import OptionError as OptionError
from tikv_embedded.errors import PortInUseError as PortInUseError
from tikv_embedded.errors import TopologyError as TopologyError
from tikv_embedded.region import Peer as Peer
from tikv_embedded.region import Region as Region
from tikv_embedded.region import RegionEpoch as RegionEpoch
from tikv_embedded.region import Store as Store
