"""Transactions on TiKV.

`TxnConfig` and `TransactionOptions` say how transactions work; `Timestamp` is the point in the cluster's order of
events that they read and commit at.
"""

from tikv_pd import Timestamp as Timestamp

from tikv_txn.config import TxnConfig as TxnConfig
from tikv_txn.options import AssertionLevel as AssertionLevel, TransactionOptions as TransactionOptions
