"""Transactions on TiKV.

The transactional client is not here yet. What this package exports works: `Timestamp`, the point in the cluster's
order of events that transactions read and commit at, with its conversions.
"""

from tikv_pd import Timestamp as Timestamp
