"""Asking for tokens, the request units a client may use, as values."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from tikv_proto import resource_manager as rmpb

from tikv_pd._services.resource_groups import Consumption


@attrs.frozen
class TokenRequest:
    """What one group used, and what it wants. Source: resource_manager.TokenBucketRequest."""

    group: str
    """Name of the group."""
    tokens: float = 0.0
    """Request units it wants; 0 gives its share of the group's tokens up to other clients."""
    consumption: Consumption = attrs.field(factory=Consumption)
    """What it used since the last request."""
    is_background: bool = False
    """Whether it only reports what work in the background used: no tokens are asked for."""

    def to_pb(self, keyspace_id: rmpb.KeyspaceIDValue | None) -> rmpb.TokenBucketRequest:
        """Make the message from the value."""
        item = rmpb.RequestUnitItem(type=rmpb.RequestUnitType.RU, value=self.tokens)
        wanted = None if self.is_background else rmpb.TokenBucketRequest.RequestRU(request_r_u=[item])
        return rmpb.TokenBucketRequest(
            resource_group_name=self.group,
            ru_items=wanted,
            consumption_since_last_request=self.consumption.to_pb(),
            is_background=self.is_background,
            keyspace_id=keyspace_id,
        )


@attrs.frozen
class TokenGrant:
    """What one group got. Source: resource_manager.GrantedRUTokenBucket."""

    group: str
    """Name of the group."""
    tokens: float
    """Request units it may use now, or spread over `trickle`."""
    trickle: float = 0.0
    """Seconds over which to spread them, because the group is short of them; 0 for at once."""
    burst_limit: int = 0
    """Request units this client may save up, its share of the group's; negative for no limit at all."""
    fill_rate: int = 0
    """Request units a second it may use besides; PD leaves that at 0, its grants are all there is."""

    @classmethod
    def from_pb(cls, answer: rmpb.TokenBucketResponse) -> Iterator[TokenGrant]:
        """Make the values from the message, one for each bucket in it: PD fills one."""
        for granted in answer.granted_r_u_tokens:
            yield cls(
                answer.resource_group_name,
                granted.granted_tokens.tokens,
                granted.trickle_time_ms / 1000,
                granted.granted_tokens.settings.burst_limit,
                granted.granted_tokens.settings.fill_rate,
            )
