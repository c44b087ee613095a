from __future__ import annotations

import pytest
from tikv_pd import ConfigError, parse_address
from tikv_pd.config import ClusterAddress, strip_scheme


@pytest.mark.parametrize(
    ("address", "endpoints", "keyspace"),
    [
        ("127.0.0.1:2379", ("127.0.0.1:2379",), None),
        ("tikv://pd1:2379", ("pd1:2379",), None),
        ("tikv://pd1:2379,pd2:2380", ("pd1:2379", "pd2:2380"), None),
        ("pd1:2379, pd2:2380", ("pd1:2379", "pd2:2380"), None),
        ("TIKV://pd1:2379/", ("pd1:2379",), None),
        ("http://pd1:2379", ("pd1:2379",), None),
        ("https://pd1:2379", ("pd1:2379",), None),
        ("tikv://[::1]:2379", ("[::1]:2379",), None),
        ("tikv://pd1:2379?keyspaceName=orders", ("pd1:2379",), "orders"),
        ("tikv://pd1:2379?keyspaceName=", ("pd1:2379",), None),
        (["pd1:2379", "tikv://pd2:2379"], ("pd1:2379", "pd2:2379"), None),
        (["pd1:2379", "pd1:2379"], ("pd1:2379",), None),
        (["pd1:2379", "tikv://pd2:2379?keyspaceName=orders"], ("pd1:2379", "pd2:2379"), "orders"),
    ],
)
def test_an_address_is_read_as_users_write_it(
    address: str | list[str], endpoints: tuple[str, ...], keyspace: str | None
) -> None:
    assert parse_address(address) == ClusterAddress(endpoints, keyspace)


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("", "host:port"),
        ("pd1", "host:port"),
        (":2379", "host:port"),
        ("::1:2379", "host:port"),
        ("pd1:2379,", "host:port"),
        ("pd1:http", "port"),
        ("pd1:0", "port"),
        ("pd1:65536", "port"),
        ("pd1:-1", "port"),
        ("pd1:\u0662\u0663", "port"),
        ("redis://pd1:2379", "scheme"),
        ("tikv://pd1:2379/db", "hosts"),
        ("tikv://user@pd1:2379", "hosts"),
        ("tikv://pd1:2379?keyspace=orders", "keyspaceName"),
        ("tikv://[::1:2379", "host:port"),
        ([], "no PD address"),
        ([b"pd1:2379"], "str"),
        (b"pd1:2379", "str"),
        (None, "str"),
        (["tikv://pd1:2379?keyspaceName=a", "tikv://pd2:2379?keyspaceName=b"], "different keyspaces"),
    ],
)
def test_an_address_that_cannot_work_is_refused_with_what_is_wrong(address: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_address(address)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("url", "address"),
    [("http://pd1:2379", "pd1:2379"), ("https://pd1:2379/", "pd1:2379"), ("pd1:2379", "pd1:2379"), ("", "")],
)
def test_a_client_url_becomes_an_address(url: str, address: str) -> None:
    assert strip_scheme(url) == address
