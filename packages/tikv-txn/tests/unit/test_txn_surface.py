from datetime import UTC, datetime

import tikv_txn
from tikv_txn import Timestamp


def test_the_package_exports_only_what_works() -> None:
    exported = {name for name in vars(tikv_txn) if not name.startswith("_")}

    assert exported == {"Timestamp"}


def test_a_moment_becomes_a_timestamp_and_comes_back() -> None:
    moment = datetime(2026, 11, 21, 12, 30, 0, 123000, tzinfo=UTC)

    assert Timestamp.from_ts(Timestamp.from_datetime(moment).ts).to_datetime() == moment
