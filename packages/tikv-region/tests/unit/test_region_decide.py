from __future__ import annotations

import pytest
from tikv_pd import BackoffKind, Peer, Region, RegionEpoch
from tikv_pd.backoff import (
    DISK_FULL,
    IS_WITNESS,
    MAX_TS_NOT_SYNCED,
    RECOVERY_IN_PROGRESS,
    REGION_MISS,
    REGION_NOT_INITIALIZED,
    REGION_SCHEDULING,
    SERVER_BUSY,
)
from tikv_proto import errorpb, metapb
from tikv_region import (
    CacheAction,
    Decision,
    EntryTooLarge,
    FlashbackInProgress,
    FlashbackNotPrepared,
    InvalidTimestamp,
    Next,
    RegionError,
    decide,
)

REGION = Region(5, b"", b"", RegionEpoch(2, 7), (Peer(51, 1), Peer(52, 2)), Peer(51, 1))
NOTHING, INVALIDATE = CacheAction.NONE, CacheAction.INVALIDATE

# Field of errorpb.Error → what it means when nothing but the field is set. `None` stands for the error to raise.
ROWS: dict[str, tuple[CacheAction, BackoffKind | None, Next]] = {
    "not_leader": (CacheAction.NEXT_PEER, REGION_SCHEDULING, Next.RESEND),
    "region_not_found": (INVALIDATE, REGION_MISS, Next.RELOCATE),
    "key_not_in_region": (INVALIDATE, REGION_MISS, Next.RELOCATE),
    "epoch_not_match": (INVALIDATE, REGION_MISS, Next.RELOCATE),
    "server_is_busy": (NOTHING, SERVER_BUSY, Next.RESEND),
    "stale_command": (NOTHING, REGION_MISS, Next.RESEND),
    "store_not_match": (CacheAction.CHECK_STORE, REGION_MISS, Next.RELOCATE),
    "raft_entry_too_large": (NOTHING, None, Next.FAIL),
    "max_timestamp_not_synced": (NOTHING, MAX_TS_NOT_SYNCED, Next.RESEND),
    "read_index_not_ready": (NOTHING, REGION_SCHEDULING, Next.RESEND),
    "proposal_in_merging_mode": (NOTHING, REGION_SCHEDULING, Next.RESEND),
    "data_is_not_ready": (NOTHING, None, Next.RESEND),
    "region_not_initialized": (NOTHING, REGION_NOT_INITIALIZED, Next.RESEND),
    "disk_full": (NOTHING, DISK_FULL, Next.RESEND),
    "RecoveryInProgress": (INVALIDATE, RECOVERY_IN_PROGRESS, Next.RELOCATE),
    "FlashbackInProgress": (NOTHING, None, Next.FAIL),
    "FlashbackNotPrepared": (NOTHING, None, Next.FAIL),
    "is_witness": (INVALIDATE, IS_WITNESS, Next.RELOCATE),
    "mismatch_peer_id": (INVALIDATE, REGION_MISS, Next.RELOCATE),
    "bucket_version_not_match": (CacheAction.REPLACE_BUCKETS, REGION_MISS, Next.RELOCATE),
    "undetermined_result": (NOTHING, None, Next.FAIL),
}
FIELDS = [field.name for field in errorpb.Error.DESCRIPTOR.fields if field.name != "message"]


def error_with(field: str) -> errorpb.Error:
    error = errorpb.Error(message="words")
    getattr(error, field).SetInParent()
    return error


def test_every_field_of_the_wire_has_a_row_here() -> None:
    assert sorted(FIELDS) == sorted(ROWS)


@pytest.mark.parametrize("field", FIELDS)
def test_each_error_is_decided_as_the_table_says(field: str) -> None:
    decision = decide(error_with(field), REGION, 1)

    assert (decision.action, decision.backoff, decision.next) == ROWS[field]
    assert (decision.error is not None) == (decision.next is Next.FAIL)
    assert decision.undetermined == (field == "undetermined_result")


@pytest.mark.parametrize("field", FIELDS)
def test_each_error_has_a_kind_of_its_own(field: str) -> None:
    error = RegionError.from_pb(error_with(field), 5, 1)

    assert error.kind.replace("_", "") == field.replace("_", "").lower()
    assert str(error) == f"Region 5 on store 1: {error.kind} (words)"


def test_an_error_in_words_alone_is_sent_to_the_next_peer() -> None:
    error = errorpb.Error(message="TiKV is Closing")

    assert decide(error, REGION) == Decision(CacheAction.NEXT_PEER, REGION_MISS, Next.RESEND)
    assert RegionError.from_pb(error, 5, 1).kind == "unknown"


def test_a_timestamp_too_far_ahead_is_refused_for_good() -> None:
    error = errorpb.Error(message="invalid max_ts update: 9 exceeds the limit 5")

    decision = decide(error, REGION)

    assert (decision.action, decision.backoff, decision.next) == (NOTHING, None, Next.FAIL)
    assert isinstance(decision.error, InvalidTimestamp)
    assert str(decision.error) == f"Region 5 refused the timestamp of a request: {error.message}"
    assert not decision.error.retryable


def not_leader(peer_id: int, store_id: int) -> errorpb.Error:
    leader = metapb.Peer(id=peer_id, store_id=store_id)
    return errorpb.Error(not_leader=errorpb.NotLeader(region_id=5, leader=leader))


def test_a_known_peer_named_as_leader_is_asked_at_once() -> None:
    assert decide(not_leader(52, 2), REGION) == Decision(CacheAction.SWITCH_LEADER, None, Next.RESEND)


@pytest.mark.parametrize(("peer_id", "store_id"), [(53, 3), (52, 3), (53, 2)])
def test_an_unknown_peer_named_as_leader_means_that_peers_changed(peer_id: int, store_id: int) -> None:
    assert decide(not_leader(peer_id, store_id), REGION) == Decision(INVALIDATE, REGION_MISS, Next.RELOCATE)


def test_a_leader_with_id_zero_is_none() -> None:
    assert decide(not_leader(0, 0), REGION) == decide(error_with("not_leader"), REGION)


def epoch_not_match(*regions: tuple[int, int, int]) -> errorpb.Error:
    current = [
        metapb.Region(id=region_id, region_epoch=metapb.RegionEpoch(conf_ver=conf_ver, version=version))
        for region_id, conf_ver, version in regions
    ]
    return errorpb.Error(epoch_not_match=errorpb.EpochNotMatch(current_regions=current))


@pytest.mark.parametrize("current", [(5, 2, 8), (5, 3, 7), (9, 1, 1)])
def test_newer_regions_replace_what_was_known(current: tuple[int, int, int]) -> None:
    assert decide(epoch_not_match(current), REGION) == Decision(CacheAction.REPLACE, None, Next.RELOCATE)


@pytest.mark.parametrize("current", [(5, 1, 7), (5, 2, 6), (5, 3, 6), (5, 1, 8), (5, 2, 7)])
def test_a_store_that_lags_behind_is_asked_again_later(current: tuple[int, int, int]) -> None:
    decision = decide(epoch_not_match((9, 9, 9), current), REGION)

    assert decision == Decision(NOTHING, REGION_MISS, Next.RESEND)


def test_final_errors_carry_what_the_store_said() -> None:
    too_large = errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge(region_id=5, entry_size=9_000_000))
    flashback = errorpb.Error(FlashbackInProgress=errorpb.FlashbackInProgress(region_id=5, flashback_start_ts=42))

    refused = decide(too_large, REGION).error
    paused = decide(flashback, REGION).error
    unprepared = decide(error_with("FlashbackNotPrepared"), REGION).error

    assert isinstance(refused, EntryTooLarge)
    assert "entry of 9000000 bytes" in str(refused)
    assert isinstance(paused, FlashbackInProgress)
    assert str(paused) == "Region 5 is in a flashback that began at 42"
    assert paused.retryable
    assert isinstance(unprepared, FlashbackNotPrepared)
    assert str(unprepared) == "Region 5 is not prepared for a flashback"


def test_an_undetermined_result_names_its_region_and_store() -> None:
    decision = decide(error_with("undetermined_result"), REGION, 2)

    assert decision.undetermined
    assert str(decision.error) == "Region 5 on store 2: undetermined_result (words)"


def test_the_first_of_several_fields_by_weight_counts() -> None:
    error = error_with("server_is_busy")
    error.undetermined_result.SetInParent()

    assert decide(error, REGION).undetermined
