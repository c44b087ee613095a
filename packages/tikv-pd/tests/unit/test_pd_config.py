from __future__ import annotations

from pathlib import Path

import pytest
from tikv_pd import ConfigError, PdConfig, SecurityConfig


@pytest.mark.parametrize(
    "option", ["timeout", "operation_timeout", "open_timeout", "member_interval", "service_interval"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_time_that_is_not_above_zero_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be above 0"):
        PdConfig(**{option: value})  # type: ignore[arg-type]  # mypy cannot see which option it is


@pytest.mark.parametrize("option", ["timeout", "max_tso_batch"])
def test_an_option_of_the_wrong_type_is_a_type_error(option: str) -> None:
    with pytest.raises(TypeError):
        PdConfig(**{option: "3"})  # type: ignore[arg-type]  # on purpose


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
