"""The stores a cache knows, and their addresses."""

from __future__ import annotations

import functools

from tikv_pd import Backoffer, Store, TikvError
from tikv_pd.backoff import PD_RPC

from tikv_region.errors import StoreUnavailable
from tikv_region.flight import SingleFlight
from tikv_region.region import StoreEntry
from tikv_region.source import RegionSource


class StoreTable:
    """One entry for each store id, made when first heard of and resolved when first used."""

    def __init__(self, pd: RegionSource, check_timeout: float) -> None:
        self._pd = pd
        self._check_timeout = check_timeout
        self._stores: dict[int, StoreEntry] = {}
        self._flights: SingleFlight[TikvError | None] = SingleFlight()

    def entry(self, store_id: int) -> StoreEntry:
        """Return the entry of a store."""
        store = self._stores.get(store_id)
        if store is None:
            store = self._stores[store_id] = StoreEntry(store_id)
        return store

    async def resolve(self, store: StoreEntry, backoffer: Backoffer) -> str:
        """Return the address, asking PD when it is unknown or in doubt."""
        while not store.is_tombstone and (store.needs_check or not store.address):
            if store.address:
                ask = functools.partial(self._ask, store, backoffer)
                failure = await self._flights.ask(store.id, backoffer.deadline, ask)
            else:
                # One answer tells of all stores, of their labels too: by those replicas are chosen, before any of
                # their addresses is needed.
                failure = await self._flights.ask(0, backoffer.deadline, functools.partial(self._ask_all, backoffer))
                if failure is None and not store.address:
                    # One that has just joined, or left long ago.
                    failure = await self._ask(store, backoffer)
            if failure is None:
                continue
            if store.address:
                # PD being away must not stop what still works; the next failure to send doubts the address again.
                store.needs_check = False
            else:
                await backoffer.backoff(PD_RPC, failure)
        return store.address

    async def refresh(self, timeout: float) -> None:
        """Learn from PD of stores that joined, left, moved or changed their labels.

        Regions led from a store that moved become stale: what requests to them keep leads to its old address.
        """
        known = await self._learn_all(timeout)
        for entry in list(self._stores.values()):
            if entry.id not in known and not entry.is_tombstone:
                learn(entry, await self._pd.get_store(entry.id, timeout=timeout))

    async def _learn_all(self, timeout: float) -> set[int]:
        """Learn what PD's list of stores tells, and return their ids."""
        known = await self._pd.get_stores(timeout=timeout)
        for store in known:
            if not store.is_tombstone or store.id in self._stores:
                follow(self.entry(store.id), store)
        return {store.id for store in known}

    async def _ask_all(self, backoffer: Backoffer) -> TikvError | None:
        try:
            await self._learn_all(backoffer.deadline.check())
        except TikvError as error:
            if not error.retryable:
                raise
            return error
        return None

    async def _ask(self, store: StoreEntry, backoffer: Backoffer) -> TikvError | None:
        timeout = backoffer.deadline.check()
        if store.address:
            timeout = min(timeout, self._check_timeout)
        try:
            known = await self._pd.get_store(store.id, timeout=timeout)
        except TikvError as error:
            if not error.retryable:
                raise
            return error
        learn(store, known)
        return None if store.address or store.is_tombstone else StoreUnavailable(store.id, "PD knows no address of it")


def learn(entry: StoreEntry, store: Store | None) -> None:
    """Take over what PD knows of a store, None for one it does not know. A tombstone stays one."""
    if entry.is_tombstone:
        return
    entry.needs_check = False
    if store is None or store.is_tombstone:
        entry.is_tombstone = True
        entry.address = ""
        entry.epoch += 1
    else:
        entry.address = store.address
        entry.labels = store.labels


def follow(entry: StoreEntry, store: Store) -> None:
    """Take over what PD knows of a store that may be in use."""
    if entry.address and store.address != entry.address and not store.is_tombstone:
        entry.epoch += 1
    learn(entry, store)
