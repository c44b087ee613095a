from __future__ import annotations

from typing import Any

import pytest
from tikv_pd.testing import virtual_time


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Time jumps: a wait of seconds takes none."""
    return virtual_time()
