"""Measure what the Region cache costs: lookups, memory and grouping of keys. No server; takes a few seconds."""

from __future__ import annotations

import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import accumulate

import anyio
from tikv_pd import Backoffer, Deadline, Peer, Region, RegionEpoch
from tikv_region import PlainCodec, RegionCache
from tikv_region.testing import MapSource, RegionMap

STORES = 3
FORMAT = "{:<62}{:>12}{:>12}"


def key(number: int) -> bytes:
    """Return one of the keys that Regions are made of."""
    return b"user:%012d:profile" % number


def filled(count: int) -> RegionCache:
    """Return a cache of so many Regions, ten keys in each."""
    cache = RegionCache(MapSource(RegionMap()), PlainCodec(), now=time.monotonic, rng=random.Random(1))
    for number in range(count):
        peers = tuple(Peer(number * 10 + store, store) for store in range(1, STORES + 1))
        start = key(number * 10) if number else b""
        end = key(number * 10 + 10) if number + 1 < count else b""
        cache.insert(Region(number * 10, start, end, RegionEpoch(5, 7), peers, peers[number % STORES]))
    return cache


def per_lookup(cache: RegionCache, keys: Sequence[bytes]) -> float:
    """Return the microseconds a lookup takes, the median of 15 passes over the keys."""
    find = cache.find
    passes = []
    for _ in range(15):
        started = time.perf_counter()
        for wanted in keys:
            find(wanted)
        passes.append((time.perf_counter() - started) / len(keys) * 1e6)
    return statistics.median(passes)


def zipfian(count: int, rng: random.Random) -> list[int]:
    """Return 20,000 numbers below `count`, the most frequent ones all over, as YCSB draws them (exponent 0.99)."""
    weights = accumulate(1 / rank**0.99 for rank in range(1, count + 1))
    return rng.choices(rng.sample(range(count), count), cum_weights=list(weights), k=20_000)


def lookups(small: RegionCache, large: RegionCache) -> None:
    """Print the time of a lookup, for five ways in which keys are chosen."""
    rng = random.Random(1)
    choices: list[tuple[str, Callable[[int], Sequence[int]]]] = [
        ("uniform", lambda count: [rng.randrange(count * 10) for _ in range(20_000)]),
        ("zipfian", lambda count: zipfian(count * 10, rng)),
        ("1,000 hot keys", lambda count: [rng.randrange(count * 10) for _ in range(1000)] * 20),
        ("ascending", lambda count: range(0, count * 10, max(count // 2000, 1))),
        ("one key", lambda count: [count * 7] * 20_000),
    ]
    for name, choose in choices:
        few = per_lookup(small, [key(number) for number in choose(len(small))])
        many = per_lookup(large, [key(number) for number in choose(len(large))])
        row(f"locate among {len(large):,} Regions, keys {name}", f"{many:.2f} µs", "≤ 2 µs")
        row(f"  as many times what it takes among {len(small):,}", f"{many / few:.1f}", "≤ 2")


def memory(count: int) -> None:
    """Print the memory of a Region, its keys included."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    cache = filled(count)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    row("memory for each Region", f"{used / len(cache):,.0f} B", "≤ 2,048 B")


async def grouping(cache: RegionCache) -> None:
    """Print the time that grouping 10,000 keys by their Regions takes."""
    rng = random.Random(1)
    keys = [key(rng.randrange(len(cache) * 10)) for _ in range(10_000)]
    times = []
    for _ in range(15):
        started = time.perf_counter()
        groups = await cache.group_keys(keys, Backoffer(Deadline("bench", 10, time.monotonic)))
        times.append((time.perf_counter() - started) * 1000)
    row(f"group 10,000 keys over {len(groups):,} Regions", f"{statistics.median(times):.1f} ms", "≤ 10 ms")


def row(what: str, value: str, goal: str) -> None:
    """Print a line of the table."""
    print(FORMAT.format(what, value, goal), flush=True)


def main() -> None:
    """Measure, and print a table."""
    row("", "measured", "goal")
    memory(20_000)
    lookups(filled(100), filled(100_000))
    anyio.run(grouping, filled(1000))


if __name__ == "__main__":
    main()
