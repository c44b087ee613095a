"""What stands around attempts and operations of a client: only what its options and observers ask for."""

from __future__ import annotations

from typing import TypeVar

from tikv_rpc._plans.attempts import Dispatch, Intercepted, RoutePlan
from tikv_rpc._plans.observed import ObservedAttempt, ObservedOperation
from tikv_rpc._plans.over_regions import Plan
from tikv_rpc._plans.redacted import RedactedAnswers, RedactedOperation
from tikv_rpc.client import RpcClient

Work = TypeVar("Work")
Result = TypeVar("Result")


def dispatch(rpc: RpcClient) -> RoutePlan:
    """Return the plan for one attempt: `Dispatch`, with the client's interceptors and observers around it."""
    plain = Dispatch(rpc)
    plan: RoutePlan = Intercepted(plain, rpc.interceptors) if rpc.interceptors else plain
    if rpc.config.redact != "off":
        plan = RedactedAnswers(plan, rpc.config.redact)
    return ObservedAttempt(plan) if rpc.observers else plan


def operation(rpc: RpcClient, plan: Plan[Work, Result]) -> Plan[Work, Result]:
    """Return the plan for a whole operation, with the client's observers and redaction around it; else `plan` itself.

    To be put around everything else, as what happens outside of it is not seen.
    """
    if rpc.observers:
        plan = ObservedOperation(plan, rpc.observers)
    if rpc.config.redact != "off":
        plan = RedactedOperation(plan, rpc.config.redact)
    return plan
