"""The Regions known, in the order of their keys: what replaces what, and what is too old to be let in.

Two parallel lists, because one bisection in C over 100,000 keys takes less than a walk through any tree in Python;
inserting moves 8 bytes for each Region behind, far less work than asking PD was.

Among many Regions most of the time goes into memory that is not in the processor's caches, half of it for the entry
found. A first level of every 64th start, and prefixes as integers in an array (which makes an int for each comparison),
were tried: neither is faster among 100,000 Regions, and both are slower among few.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from tikv_region.ranges import KeyRange, gaps
from tikv_region.region import InvalidReason, RegionEntry


class RegionIndex:
    """Entries that never overlap, by start key and by id."""

    def __init__(self) -> None:
        self.starts: list[bytes] = []
        """Start keys, ascending; always the same list object."""
        self.entries: list[RegionEntry] = []
        """The entry for each start key; always the same list object."""
        self._by_id: dict[int, RegionEntry] = {}

    def at(self, key: bytes) -> RegionEntry | None:
        """Return the entry that holds `key`, valid or not."""
        index = bisect_right(self.starts, key) - 1
        if index < 0 or not self.entries[index].contains(key):
            return None
        return self.entries[index]

    def by_id(self, region_id: int) -> RegionEntry | None:
        """Return the entry of a Region, valid or not."""
        return self._by_id.get(region_id)

    def at_end(self, key: bytes) -> RegionEntry | None:
        """Return the entry that holds the keys just below `key`, valid or not; the last one for an empty key."""
        index = (bisect_left(self.starts, key) if key else len(self.starts)) - 1
        if index < 0 or not _reaches(self.entries[index], key):
            return None
        return self.entries[index]

    def overlapping(self, start: bytes, end: bytes) -> list[RegionEntry]:
        """Return the entries that share keys with a range, ascending."""
        low, high = self._span(start, end)
        return self.entries[low:high]

    def unknown(self, key_range: KeyRange) -> list[KeyRange]:
        """Return the parts of a range that no valid entry holds, ascending."""
        entries = self.overlapping(key_range.start, key_range.end)
        return gaps([key_range], [entry.range for entry in entries if entry.is_valid()])

    def put(self, entry: RegionEntry, *, renew: bool = False) -> RegionEntry | None:
        """Let an entry in, in place of what it overlaps, unless something newer is known.

        Newer is the same Region with a higher version or conf_ver, or any overlapping one with a higher version: a
        split or merge raises the version above those of all Regions involved. Nothing changes when it is rejected.

        Args:
            entry: What somebody learned.
            renew: Whether it takes the place of one known that is as new and still valid.

        Returns:
            The entry that stands for the Region now: by default the one known before if it is as new, has the same
            bounds and is still valid, so that what requests keep with it stays; None when rejected.
        """
        known = self._by_id.get(entry.id)
        if known is not None and is_behind(entry, known):
            return None
        low, high = self._span(entry.start, entry.end)
        replaced = self.entries[low:high]
        if any(old.epoch.version > entry.epoch.version for old in replaced):
            return None
        if replaced == [known] and known is not None and not renew and _is_kept(known, entry):
            known.expires_at = entry.expires_at
            known.learn_buckets(entry.buckets)
            return known
        if known is not None and known not in replaced:
            self.remove(known)
            low, high = self._span(entry.start, entry.end)
        self.starts[low:high] = [entry.start]
        self.entries[low:high] = [entry]
        self._share_bounds(low)
        if replaced:
            # Whoever replaces a Region has not always heard of buckets; those of the first piece fit most of a new one.
            entry.learn_buckets(replaced[0].buckets)
        for old in replaced:
            del self._by_id[old.id]
            _inherit_leader(entry, old)
            old.invalidate(InvalidReason.REPLACED)
        self._by_id[entry.id] = entry
        return entry

    def remove(self, entry: RegionEntry) -> None:
        """Forget an entry; nothing happens if it is not held."""
        index = bisect_left(self.starts, entry.start)
        if index < len(self.entries) and self.entries[index] is entry:
            del self.starts[index], self.entries[index], self._by_id[entry.id]

    def sweep(self, cursor: bytes, limit: int) -> bytes:
        """Let the entries from `cursor` on grow old, at most `limit`, and forget those of no more use.

        Returns:
            Where the next sweep begins; empty after the last entry.
        """
        low = bisect_left(self.starts, cursor)
        swept = self.entries[low : low + limit]
        more = low + limit < len(self.entries)
        kept = [entry for entry in swept if entry.grow_old()]
        if len(kept) < len(swept):
            for entry in swept:
                del self._by_id[entry.id]
            self._by_id.update((entry.id, entry) for entry in kept)
            self.starts[low : low + limit] = [entry.start for entry in kept]
            self.entries[low : low + limit] = kept
        return swept[-1].start + b"\0" if more else b""

    def clear(self) -> None:
        """Forget everything."""
        self.starts.clear()
        self.entries.clear()
        self._by_id.clear()

    def obstacles(self, entry: RegionEntry) -> list[RegionEntry]:
        """Return the entries for whose sake `put` rejects this one."""
        newer = [old for old in self.overlapping(entry.start, entry.end) if old.epoch.version > entry.epoch.version]
        known = self._by_id.get(entry.id)
        if known is not None and known not in newer and is_behind(entry, known):
            newer.append(known)
        return newer

    def _share_bounds(self, index: int) -> None:
        # Neighbors share one object for their common bound: a lookup has just compared that of the right one, so that
        # looking at the end of the left one touches no further memory.
        entry = self.entries[index]
        if index + 1 < len(self.starts) and self.starts[index + 1] == entry.end:
            entry.end = self.starts[index + 1]
        if index and self.entries[index - 1].end == entry.start:
            self.entries[index - 1].end = entry.start

    def _span(self, start: bytes, end: bytes) -> tuple[int, int]:
        low = bisect_right(self.starts, start) - 1
        if low < 0 or not _reaches(self.entries[low], start, beyond=True):
            low += 1
        return low, bisect_left(self.starts, end, low) if end else len(self.starts)


def is_behind(entry: RegionEntry, known: RegionEntry) -> bool:
    """Tell whether an entry is an earlier incarnation of its Region than the one known."""
    return entry.epoch.version < known.epoch.version or entry.epoch.conf_ver < known.epoch.conf_ver


def _reaches(entry: RegionEntry, key: bytes, *, beyond: bool = False) -> bool:
    # An empty key stands for the end of the key space, which only an unbounded entry reaches.
    if not entry.end:
        return True
    return key < entry.end if beyond else bool(key) and key <= entry.end


def _is_kept(known: RegionEntry, entry: RegionEntry) -> bool:
    # One with missing replicas, or that somebody wants loaded again, makes way for what PD says of its peers now.
    # Bounds differ at the same epoch only when the cluster was set back to a backup and split anew.
    same = known.epoch == entry.epoch and known.range == entry.range and known.is_valid()
    return same and known.is_renewable and not known.needs_reload


def _inherit_leader(entry: RegionEntry, old: RegionEntry) -> None:
    if old.id != entry.id:
        return
    if old.is_valid() and old.epoch == entry.epoch and old.leader_peer in entry.peers:
        # Requests learn of a new leader before PD does.
        entry.switch_leader(entry.peers.index(old.leader_peer))
    elif old.leader_peer == entry.leader_peer and old.invalid_reason is InvalidReason.NO_LEADER:
        # PD may take a while to notice that a leader is gone; what it names again was tried in vain already.
        entry.next_leader()
