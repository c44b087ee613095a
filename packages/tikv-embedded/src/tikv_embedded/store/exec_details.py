"""What a store tells about the time a request took; clients read it without asking whether it is there."""

from __future__ import annotations

from typing import Any


def fill_times(response: Any, seconds: float) -> None:
    """Set the times of `exec_details_v2` if the response has that field and nobody filled it."""
    fields = response.DESCRIPTOR.fields_by_name
    if "exec_details_v2" not in fields or response.HasField("exec_details_v2"):
        return
    details = response.exec_details_v2
    details.time_detail.process_wall_time_ms = int(seconds * 1e3)
    details.time_detail.total_rpc_wall_time_ns = details.time_detail_v2.total_rpc_wall_time_ns = int(seconds * 1e9)
    details.time_detail_v2.process_wall_time_ns = int(seconds * 1e9)


def fill_details(response: Any, seconds: float) -> None:
    """Set the times, and the details of scan and write that clients look into, where the response has them."""
    fill_times(response, seconds)
    if "exec_details_v2" in response.DESCRIPTOR.fields_by_name:
        response.exec_details_v2.scan_detail_v2.SetInParent()
        response.exec_details_v2.write_detail.SetInParent()
