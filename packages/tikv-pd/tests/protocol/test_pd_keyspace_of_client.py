"""A client that is bound to a keyspace."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from tikv_pd import ClosedError, ConfigError, DeadlineExceeded, Keyspace, KeyspaceNotFound, PdClient, PdConfig
from tikv_pd.testing import FakePd
from tikv_proto.services import Keyspace as KeyspaceService

USERS = Keyspace(5, "users", "ENABLED")


@pytest.mark.parametrize(
    ("address", "keyspace"),
    [
        ("pd1:2379", "users"),
        ("pd1:2379", 5),
        ("tikv://pd1:2379?keyspaceName=users", None),
        ("tikv://pd1:2379?keyspaceName=users", "users"),
    ],
)
async def test_a_keyspace_is_named_by_argument_or_url_and_looked_up_while_opening(
    pd: FakePd, address: str, keyspace: str | int | None
) -> None:
    pd.keyspaces["users"] = USERS

    async with PdClient(address, keyspace=keyspace, transport=pd.transport) as client:
        found = client.keyspace

    assert found == USERS
    with pytest.raises(ClosedError):
        _ = client.keyspace


async def test_without_one_none_is_looked_up(pd: FakePd) -> None:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        assert client.keyspace is None

    assert pd.calls(KeyspaceService.LoadKeyspace) == 0


@pytest.mark.parametrize("keyspace", ["users", 5])
@pytest.mark.parametrize("state", [None, "DISABLED"])
async def test_a_keyspace_that_cannot_be_used_fails_opening_and_leaves_nothing_behind(
    pd: FakePd, keyspace: str | int, state: str | None
) -> None:
    if state is not None:
        pd.keyspaces["users"] = Keyspace(5, "users", state)

    with pytest.raises(KeyspaceNotFound):
        await PdClient("pd1:2379", keyspace=keyspace, transport=pd.transport).__aenter__()

    assert pd.transport.open_connections() == []


async def test_looking_it_up_follows_the_leader(pd: FakePd) -> None:
    pd.keyspaces["users"] = USERS
    pd.refuse(KeyspaceService.LoadKeyspace, times=2)

    async with PdClient("pd1:2379", keyspace="users", transport=pd.transport) as client:
        assert client.keyspace == USERS


async def test_looking_it_up_takes_no_longer_than_opening_may(pd: FakePd) -> None:
    pd.hang(KeyspaceService.LoadKeyspace)
    client = PdClient("pd1:2379", keyspace="users", config=PdConfig(open_timeout=4), transport=pd.transport)

    with pytest.raises(DeadlineExceeded):
        await client.__aenter__()

    assert anyio.current_time() == 4
    assert pd.transport.open_connections() == []


async def test_an_opening_cancelled_meanwhile_leaves_nothing_behind(pd: FakePd) -> None:
    pd.hang(KeyspaceService.LoadKeyspace)

    with anyio.move_on_after(0.05) as scope:
        await PdClient("pd1:2379", keyspace="users", transport=pd.transport).__aenter__()

    assert scope.cancelled_caught
    assert pd.transport.open_connections() == []


@pytest.mark.parametrize(
    ("keyspace", "why"),
    [
        (-1, "between 0 and"),
        (1 << 24, "between 0 and"),
        ("", "not empty"),
        ("other", "the address names keyspace 'users', the argument 'other'"),
        (5, "the address names keyspace 'users', the argument 5"),
    ],
)
def test_a_keyspace_that_can_never_be_is_refused(keyspace: str | int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        PdClient("pd1:2379?keyspaceName=users", keyspace=keyspace)


@pytest.mark.parametrize("keyspace", [True, 1.5, b"users"])
def test_a_keyspace_of_the_wrong_type_is_a_type_error(keyspace: Any) -> None:
    with pytest.raises(TypeError, match="keyspace must be a name or an id"):
        PdClient("pd1:2379", keyspace=keyspace)
