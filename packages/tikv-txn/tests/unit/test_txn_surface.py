from datetime import UTC, datetime

from tikv_txn import Timestamp


def test_a_moment_becomes_a_timestamp_and_comes_back() -> None:
    moment = datetime(2026, 11, 21, 12, 30, 0, 123000, tzinfo=UTC)

    assert Timestamp.from_ts(Timestamp.from_datetime(moment).ts).to_datetime() == moment
