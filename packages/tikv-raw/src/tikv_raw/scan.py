"""What `RawClient.scan` returns."""

from __future__ import annotations

from tikv_rpc.frontend.paging import PagedScan


class Scan(PagedScan):
    """The (key, value) pairs of a range, fetched page by page as they are consumed.

    Not a snapshot: a pair written or removed while the scan runs may or may not appear. Pairs come in key order, each
    key at most once, also when Regions split, merge or move meanwhile. Several tasks may iterate over one scan: each
    pair goes to one of them.

    Breaking out of the loop leaves nothing behind but at most one page that is fetched and dropped; `aclose`, or
    `async with`, ends that at once, too.

    Raises, while iterating:
        DeadlineExceeded: a page did not come within the scan's `timeout`. Iterating on tries again from there.
        ClosedError: the client was closed. Pairs fetched before are still returned.
        RawError: the store refused.

    Cancellation: safe. Iterating on afterwards continues with the pair after the last one returned.
    Source: kvrpcpb.RawScanRequest.
    """
