from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from tikv_pd import BreakerConfig, ConfigError, PdConfig, SecurityConfig


@pytest.mark.parametrize(
    "option", ["timeout", "operation_timeout", "open_timeout", "member_interval", "service_interval"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_time_that_is_not_above_zero_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be above 0"):
        PdConfig(**{option: value})  # type: ignore[arg-type]  # mypy cannot see which option it is


@pytest.mark.parametrize("option", attrs.fields(PdConfig), ids=lambda option: option.name)
def test_an_option_of_the_wrong_type_is_a_type_error(option: attrs.Attribute[object]) -> None:
    with pytest.raises(TypeError, match=option.name):
        PdConfig(**{option.name: [3]})  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("option", attrs.fields(BreakerConfig), ids=lambda option: option.name)
@pytest.mark.parametrize("value", ["3", True, None])
def test_a_number_of_the_breaker_is_no_text_and_no_truth(option: attrs.Attribute[object], value: object) -> None:
    with pytest.raises(TypeError, match=option.name):
        BreakerConfig(**{"threshold": 10, option.name: value})  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("option", ["timeout", "max_tso_batch", "low_resolution_interval"])
def test_a_truth_is_no_number(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        PdConfig(**{option: True})  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("value", [0, -1, 2**18])
def test_a_message_asks_for_as_many_timestamps_as_a_millisecond_has_at_most(value: int) -> None:
    with pytest.raises(ConfigError, match="max_tso_batch"):
        PdConfig(max_tso_batch=value)


def test_there_are_no_more_than_a_hundred_percent() -> None:
    with pytest.raises(ConfigError, match="threshold"):
        BreakerConfig(threshold=101)


@pytest.mark.parametrize("value", ["", "  ", "a\nb", "ü"])
def test_the_name_of_the_caller_can_be_read_in_a_log(value: str) -> None:
    with pytest.raises(ConfigError, match="caller_component"):
        PdConfig(caller_component=value)


@pytest.mark.parametrize("mapping", [{"pd1": "127.0.0.1:2379"}, {"pd1:2379": "127.0.0.1"}, {"http://pd1:2379": "a:1"}])
def test_a_mapping_that_would_never_match_is_refused(mapping: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"host_mapping.*is not host:port"):
        PdConfig(host_mapping=mapping)


@pytest.mark.parametrize("option", ["ca_path", "cert_path", "key_path", "server_name"])
def test_an_option_of_security_of_the_wrong_type_is_a_type_error(option: str) -> None:
    with pytest.raises(TypeError):
        SecurityConfig(**{"ca_path": "ca.pem", "cert_path": "c.pem", "key_path": "k.pem", option: 3})  # type: ignore[arg-type]  # on purpose


def test_tls_material_is_read_when_it_is_loaded(tmp_path: Path) -> None:
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    security = SecurityConfig(ca_path=ca, cert_path=cert, key_path=str(key))
    ca.write_bytes(b"authority")
    cert.write_bytes(b"chain")
    key.write_bytes(b"key")

    material = security.load()

    assert material == (b"authority", b"chain", b"key")


def test_a_certificate_authority_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"authority")

    material = SecurityConfig(ca_path=tmp_path / "ca.pem").load()

    assert material == (b"authority", None, None)


def test_tls_material_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    security = SecurityConfig(ca_path=tmp_path / "missing.pem")

    with pytest.raises(ConfigError, match=r"missing\.pem"):
        security.load()


@pytest.mark.parametrize("given", ["cert_path", "key_path"])
def test_half_a_client_certificate_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="both cert_path and key_path"):
        SecurityConfig(ca_path="ca.pem", **{given: "half.pem"})
