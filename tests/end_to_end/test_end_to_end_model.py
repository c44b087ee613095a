"""RawClient against a dict, while the Regions below it change in every way."""

from __future__ import annotations

import random
from contextlib import ExitStack, suppress
from typing import Any

import anyio.from_thread
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tikv_embedded import EmbeddedCluster
from tikv_embedded.errors import TopologyError
from tikv_raw import CasResult, RawClient, RawConfig

# Few bytes, so that keys meet; those at the edges of byte order, so that bounds are crossed.
KEYS = st.binary(max_size=3).map(lambda key: bytes(b"\0\1a\xfe\xff"[byte % 5] for byte in key))
VALUES = st.binary(max_size=6)
CFS = st.sampled_from(["default", "lock"])


class RawModel(RuleBasedStateMachine):
    """One client, one cluster, and a dict for each column family."""

    api_version: Any = "v1"

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, dict[bytes, bytes]] = {"default": {}, "lock": {}}
        self.stack = ExitStack()

    @initialize(page=st.integers(1, 4), batch=st.integers(1, 4), splits=st.lists(KEYS.filter(bool), max_size=4))
    def open(self, page: int, batch: int, splits: list[bytes]) -> None:
        portal = self.portal = self.stack.enter_context(anyio.from_thread.start_blocking_portal())
        cluster = portal.call(lambda: _cluster(self.api_version, splits))
        self.cluster = self.stack.enter_context(portal.wrap_async_context_manager(cluster))
        config = RawConfig(scan_page=page, batch_keys=batch)
        client = portal.call(lambda: _client(cluster.url, self.api_version, config))
        self.client = self.stack.enter_context(portal.wrap_async_context_manager(client))

    def teardown(self) -> None:
        self.stack.close()

    def run(self, function: Any, *args: Any, **options: Any) -> Any:
        async def call() -> Any:
            return await function(*args, **options)

        return self.portal.call(call)

    def change(self, method: Any, *args: Any) -> None:
        """Change the cluster if it can be changed so."""

        async def call() -> None:
            with suppress(TopologyError):
                method(*args)

        self.portal.call(call)

    def pairs(self, cf: str, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        within = self.model[self.cf(cf)].items()
        return sorted((key, value) for key, value in within if start <= key and (not end or key < end))

    def cf(self, cf: str) -> str:
        return "default" if self.api_version == "v2" else cf

    @rule(key=KEYS, value=VALUES, cf=CFS)
    def put(self, key: bytes, value: bytes, cf: str) -> None:
        self.run(self.client.put, key, value, cf=self.cf(cf))
        self.model[self.cf(cf)][key] = value

    @rule(pairs=st.lists(st.tuples(KEYS, VALUES), max_size=12), cf=CFS)
    def batch_put(self, pairs: list[tuple[bytes, bytes]], cf: str) -> None:
        self.run(self.client.batch_put, pairs, cf=self.cf(cf))
        self.model[self.cf(cf)].update(pairs)

    @rule(key=KEYS, cf=CFS)
    def delete(self, key: bytes, cf: str) -> None:
        self.run(self.client.delete, key, cf=self.cf(cf))
        self.model[self.cf(cf)].pop(key, None)

    @rule(keys=st.lists(KEYS, max_size=12), cf=CFS)
    def batch_delete(self, keys: list[bytes], cf: str) -> None:
        self.run(self.client.batch_delete, keys, cf=self.cf(cf))
        for key in keys:
            self.model[self.cf(cf)].pop(key, None)

    @rule(start=KEYS, end=KEYS, cf=CFS)
    def delete_range(self, start: bytes, end: bytes, cf: str) -> None:
        self.run(self.client.delete_range, start, end, everything=True, cf=self.cf(cf))
        for key, _ in self.pairs(cf, start, end):
            del self.model[self.cf(cf)][key]

    @rule(prefix=KEYS, cf=CFS)
    def delete_prefix(self, prefix: bytes, cf: str) -> None:
        self.run(self.client.delete_prefix, prefix, everything=True, cf=self.cf(cf))
        for key, _ in self.pairs(cf, prefix, b""):
            if key.startswith(prefix):
                del self.model[self.cf(cf)][key]

    @rule(key=KEYS, value=VALUES, cf=CFS)
    def put_if_absent(self, key: bytes, value: bytes, cf: str) -> None:
        found = self.model[self.cf(cf)].get(key)

        result = self.run(self.client.put_if_absent, key, value, cf=self.cf(cf))

        assert result == CasResult(swapped=found is None, previous=found)
        self.model[self.cf(cf)].setdefault(key, value)

    @rule(key=KEYS, expected=st.none() | VALUES, value=st.none() | VALUES, lucky=st.booleans(), cf=CFS)
    def compare_and_swap(self, key: bytes, expected: bytes | None, value: bytes | None, lucky: bool, cf: str) -> None:
        found = self.model[self.cf(cf)].get(key)
        expected = found if lucky else expected

        result = self.run(self.client.compare_and_swap, key, expected, value, cf=self.cf(cf))

        assert result == CasResult(swapped=found == expected, previous=found)
        if result.swapped and value is not None:
            self.model[self.cf(cf)][key] = value
        elif result.swapped:
            self.model[self.cf(cf)].pop(key, None)

    @rule(key=KEYS, cf=CFS)
    def get(self, key: bytes, cf: str) -> None:
        assert self.run(self.client.get, key, cf=self.cf(cf)) == self.model[self.cf(cf)].get(key)

    @rule(keys=st.lists(KEYS, max_size=12), cf=CFS)
    def batch_get(self, keys: list[bytes], cf: str) -> None:
        model = self.model[self.cf(cf)]
        expected = {key: model[key] for key in keys if key in model}

        assert self.run(self.client.batch_get, keys, cf=self.cf(cf)) == expected

    @rule(start=KEYS, end=KEYS, limit=st.none() | st.integers(0, 8), reverse=st.booleans(), cf=CFS)
    def scan(self, start: bytes, end: bytes, limit: int | None, reverse: bool, cf: str) -> None:
        async def collect() -> list[tuple[bytes, bytes]]:
            found = self.client.scan(start, end, limit=limit, reverse=reverse, cf=self.cf(cf))
            return [pair async for pair in found]

        expected = self.pairs(cf, start, end)
        assert self.portal.call(collect) == (expected[::-1] if reverse else expected)[:limit]

    @rule(
        ranges=st.lists(st.tuples(KEYS, KEYS), max_size=6),
        limit=st.none() | st.integers(0, 8),
        reverse=st.booleans(),
        cf=CFS,
    )
    def batch_scan(self, ranges: list[tuple[bytes, bytes]], limit: int | None, reverse: bool, cf: str) -> None:
        found = self.run(self.client.batch_scan, ranges, each_limit=limit, reverse=reverse, cf=self.cf(cf))

        expected = [self.pairs(cf, start, end) for start, end in ranges]
        assert found == [(pairs[::-1] if reverse else pairs)[:limit] for pairs in expected]

    @rule(start=KEYS, end=KEYS, cf=CFS)
    def count(self, start: bytes, end: bytes, cf: str) -> None:
        assert self.run(self.client.count, start, end, cf=self.cf(cf)) == len(self.pairs(cf, start, end))

    @rule(prefix=KEYS, cuts=st.lists(KEYS.filter(bool), max_size=3), seed=st.integers(0, 99))
    def scan_while_regions_change(self, prefix: bytes, cuts: list[bytes], seed: int) -> None:
        async def collect() -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
            up, down = [], []
            scan = self.client.scan(prefix=prefix, reverse=True)
            async for pair in self.client.scan(prefix=prefix):
                up.append(pair)
                down.append(await anext(scan))
                self._disturb(cuts, random.Random(seed))
            return up, down + [pair async for pair in scan]

        up, down = self.portal.call(collect)

        assert up == [pair for pair in self.pairs("default", b"", b"") if pair[0].startswith(prefix)]
        assert down == up[::-1]

    @rule(start=KEYS, end=KEYS)
    def checksum(self, start: bytes, end: bytes) -> None:
        pairs = self.pairs("default", start, end)

        found = self.run(self.client.checksum, start, end)

        prefix = 4 if self.api_version == "v2" else 0
        assert found.total_kvs == len(pairs)
        assert found.total_bytes == sum(len(key) + len(value) + prefix for key, value in pairs)

    @precondition(lambda self: self.api_version != "v1")
    @rule(key=KEYS, value=VALUES)
    def put_with_ttl(self, key: bytes, value: bytes) -> None:
        self.run(self.client.put, key, value, ttl=10_000)
        self.model["default"][key] = value
        assert 9_000 < self.run(self.client.ttl, key) <= 10_000

    @rule(keys=st.lists(KEYS.filter(bool), max_size=3))
    def split(self, keys: list[bytes]) -> None:
        self.change(self.cluster.split, *keys)

    @rule(index=st.integers(0, 9), forward=st.booleans())
    def merge(self, index: int, forward: bool) -> None:
        regions = self.cluster.regions()
        if len(regions) > 1:
            left = index % (len(regions) - 1)
            source, target = regions[left : left + 2] if forward else regions[left : left + 2][::-1]
            self.change(self.cluster.merge, source.id, target.id)

    @rule(index=st.integers(0, 9), store=st.integers(0, 2))
    def transfer_leader(self, index: int, store: int) -> None:
        region = self.cluster.regions()[index % len(self.cluster.regions())]
        self.change(self.cluster.transfer_leader, region.id, region.peers[store % len(region.peers)].store_id)

    @rule(index=st.integers(0, 9), store=st.integers(0, 2))
    def renew_peer(self, index: int, store: int) -> None:
        region = self.cluster.regions()[index % len(self.cluster.regions())]
        store_id = region.peers[store % len(region.peers)].store_id
        self.change(self.cluster.remove_peer, region.id, store_id)
        self.change(self.cluster.add_peer, region.id, store_id)

    def _disturb(self, cuts: list[bytes], chance: random.Random) -> None:
        regions = self.cluster.regions()
        if len(regions) > 1 and chance.random() < 0.5:
            left = chance.randrange(len(regions) - 1)
            self.cluster.merge(regions[left].id, regions[left + 1].id)
        else:
            self.cluster.split(*cuts)
        for region in self.cluster.regions():
            self.cluster.transfer_leader(region.id, chance.choice(region.peers).store_id)

    @invariant()
    def every_key_is_where_the_model_has_it(self) -> None:
        async def collect() -> list[tuple[bytes, bytes]]:
            return [pair async for pair in self.client.scan()]

        assert self.portal.call(collect) == self.pairs("default", b"", b"")


async def _cluster(api_version: Any, splits: list[bytes]) -> EmbeddedCluster:
    return EmbeddedCluster(api_version=api_version, split_keys=splits)


async def _client(url: str, api_version: Any, config: RawConfig) -> RawClient:
    return RawClient(url, api_version=api_version, config=config)


@pytest.mark.parametrize("api_version", ["v1", "v1ttl", "v2"])
def test_the_client_behaves_as_a_dict(api_version: str) -> None:
    machine: Any = type("Model", (RawModel,), {"api_version": api_version})
    case = machine.TestCase()
    case.settings = settings(
        max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )

    case.runTest()
