"""What one transaction may differ in from another."""

from __future__ import annotations

import enum
from typing import Any, Final

import attrs
from attrs import validators
from tikv_pd import LATEST, ConfigError
from tikv_pd.config import not_negative, number, positive, whole_number
from tikv_rpc import RequestOptions


class AssertionLevel(enum.Enum):
    """How far stores check what a transaction asserts of its keys. Source: kvrpcpb.AssertionLevel."""

    OFF = 0
    """Not at all."""
    FAST = 1
    """Where it takes no read that prewriting the key would not make anyway."""
    STRICT = 2
    """Always."""


_optional_seconds: Final = validators.optional((number, positive))


def _timestamp(_instance: Any, attribute: attrs.Attribute[Any], value: int) -> None:
    if not 0 <= value < LATEST:
        raise ConfigError(f"{attribute.name} must be a composed timestamp below 2**64 - 1, got {value!r}")


@attrs.frozen(kw_only=True)
class TransactionOptions:
    """How a transaction commits, and what it asks of the stores. Durations in seconds.

    Immutable; make one and use it for many transactions. `TxnConfig.transaction` holds the client's own.
    """

    async_commit: bool = attrs.field(default=True, validator=validators.instance_of(bool))
    """Whether a commit may be decided by the prewrites alone, which saves its caller the round of commit requests.

    For transactions within `TxnConfig.async_commit_keys` and `async_commit_key_bytes`; others, and those that stores
    turn down, commit in two phases. Source: client-go SetEnableAsyncCommit, which TiDB turns on, too.
    """
    one_pc: bool = attrs.field(default=True, validator=validators.instance_of(bool))
    """Whether a transaction that fits into one prewrite request may be committed by it, without any lock.

    Source: client-go SetEnable1PC, which TiDB turns on, too.
    """
    causal_consistency: bool = attrs.field(default=False, validator=validators.instance_of(bool))
    """Whether commits need only be ordered where one transaction read what another wrote.

    It saves asking PD for a timestamp before an async or one-phase commit. Without it, a transaction that begins after
    another was committed, anywhere, has the greater timestamps. Source: client-go SetCausalConsistency.
    """
    assertion_level: AssertionLevel = attrs.field(
        default=AssertionLevel.STRICT, validator=validators.instance_of(AssertionLevel)
    )
    """How far stores check what is asserted of keys; without effect on keys of which nothing is."""
    commit_after: int = attrs.field(default=0, validator=[whole_number, _timestamp])
    """A composed timestamp that the commit timestamp must be above, such as one of another cluster; 0 for none.

    Source: client-go SetCommitWaitUntilTSO.
    """
    commit_after_timeout: float = attrs.field(default=1.0, validator=[number, not_negative])
    """Seconds a commit may wait for PD to get past `commit_after`; when PD is further behind, it fails at once."""
    timeout: float | None = attrs.field(default=None, validator=_optional_seconds)
    """Seconds that each call of the transaction may take that names no timeout; None for `TxnConfig.timeout`."""
    requests: RequestOptions = attrs.field(factory=RequestOptions, validator=validators.instance_of(RequestOptions))
    """What the transaction asks of the stores: priority, which replica serves reads, resource group, and so on.

    Not for updates: `Isolation.RC`, whose reads miss what is just being committed, without a conflict to show for it.
    """
    max_entry_bytes: int = attrs.field(default=7 << 20, validator=[whole_number, positive])
    """Bytes of a key with its value at most; has to fit `raftstore.raft-entry-max-size`, 8 MiB."""
    max_bytes: int = attrs.field(default=100 << 20, validator=[whole_number, positive])
    """Bytes of all keys and values that a transaction may buffer. Source: TiDB's txn-total-size-limit."""
