from __future__ import annotations

from typing import Any

import pytest
from tikv_pd import ConfigError
from tikv_region import RegionConfig, RegionUnavailable, StoreUnavailable


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": 0},
        {"ttl": float("inf")},
        {"ttl": "600"},
        {"ttl_jitter": -1},
        {"scan_page": 0},
        {"scan_page": 1.5},
        {"stale_answers": -1},
        {"store_check_timeout": 0},
        {"reload_timeout": -1},
        {"sweep_interval": 0},
        {"sweep_regions": 0},
        {"stores_interval": "10"},
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        RegionConfig(**options)


def test_errors_name_what_they_are_about_and_cut_long_keys() -> None:
    assert str(RegionUnavailable(b"ab", "gone")) == "no Region for key 0x6162: gone"
    assert str(RegionUnavailable(b"a" * 40, "gone")) == f"no Region for key 0x{'61' * 32}…: gone"
    assert str(StoreUnavailable(3, "no address")) == "store 3 cannot be reached: no address"
