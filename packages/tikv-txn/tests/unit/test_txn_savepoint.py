import contextlib

import pytest
from tikv_pd import ConfigError
from tikv_txn._buffer import Buffer, Limits
from tikv_txn.savepoint import Savepoint


@pytest.fixture
def buffer() -> Buffer:
    return Buffer(Limits(key=100, key_prefix=0, entry=100, total=1000))


def test_a_block_that_raises_is_taken_back(buffer: Buffer) -> None:
    buffer.put(b"a", b"1")

    with contextlib.suppress(LookupError), Savepoint(buffer):
        buffer.put(b"a", b"2")
        raise LookupError

    entry = buffer.get(b"a")
    assert entry is not None
    assert entry.value == b"1"


def test_a_block_that_ends_well_stays(buffer: Buffer) -> None:
    with Savepoint(buffer) as savepoint:
        buffer.put(b"a", b"1")

    assert buffer.get(b"a") is not None
    with pytest.raises(ConfigError, match="has ended"):
        savepoint.release()


async def test_a_block_may_be_async(buffer: Buffer) -> None:
    with contextlib.suppress(LookupError):
        async with Savepoint(buffer):
            buffer.put(b"a", b"2")
            raise LookupError
    async with Savepoint(buffer):
        buffer.put(b"b", b"2")

    assert [entry.key for entry in buffer.entries()] == [b"b"]


def test_a_block_that_rolled_back_itself_leaves_as_it_is(buffer: Buffer) -> None:
    with Savepoint(buffer) as savepoint:
        buffer.put(b"a", b"1")
        savepoint.rollback()
        buffer.put(b"b", b"1")

    assert [entry.key for entry in buffer.entries()] == [b"b"]


def test_blocks_nest(buffer: Buffer) -> None:
    with Savepoint(buffer):
        buffer.put(b"a", b"1")
        with contextlib.suppress(LookupError), Savepoint(buffer):
            buffer.put(b"b", b"1")
            with Savepoint(buffer):
                buffer.put(b"c", b"1")
            raise LookupError

    assert [entry.key for entry in buffer.entries()] == [b"a"]
