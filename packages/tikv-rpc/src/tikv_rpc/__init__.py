"""The request engine of TiKV clients: connections to stores, BatchCommands, retries, and plans over Regions.

A client of a layer above opens an `RpcClient`, composes plans once, and for each user call executes one with a `Call`.
"""

from tikv_rpc._plans.attempts import (
    Dispatch as Dispatch,
    Intercepted as Intercepted,
    RegionPlan as RegionPlan,
    RetryRegion as RetryRegion,
    RoutePlan as RoutePlan,
)
from tikv_rpc._plans.branches import Branches as Branches
from tikv_rpc._plans.collapse import Collapse as Collapse
from tikv_rpc._plans.composing import dispatch as dispatch, operation as operation
from tikv_rpc._plans.express import Express as Express
from tikv_rpc._plans.observed import (
    ObservedAttempt as ObservedAttempt,
    ObservedOperation as ObservedOperation,
    ObservedRegionCache as ObservedRegionCache,
)
from tikv_rpc._plans.over_regions import (
    AtEdge as AtEdge,
    AtKey as AtKey,
    Collect as Collect,
    Collected as Collected,
    Edge as Edge,
    FanOut as FanOut,
    LockResolver as LockResolver,
    Merge as Merge,
    Plan as Plan,
    ResolveLocks as ResolveLocks,
    Settle as Settle,
    Splittable as Splittable,
)
from tikv_rpc._plans.work import GroupedWork as GroupedWork, KeyWork as KeyWork, RangeWork as RangeWork
from tikv_rpc._reports.exec_details import (
    ExecDetails as ExecDetails,
    ExecDetailsCollector as ExecDetailsCollector,
    collect_exec_details as collect_exec_details,
)
from tikv_rpc._reports.observer import (
    AttemptReport as AttemptReport,
    Execution as Execution,
    Operation as Operation,
    OperationObserver as OperationObserver,
    OperationReport as OperationReport,
    RpcObserver as RpcObserver,
    TokenObserver as TokenObserver,
    TokenRequestReport as TokenRequestReport,
    TokenWaitReport as TokenWaitReport,
    WaitReport as WaitReport,
)
from tikv_rpc._reports.stats import BatchStats as BatchStats, RpcStats as RpcStats, StoreStats as StoreStats
from tikv_rpc._stores.route import Route as Route, Routes as Routes
from tikv_rpc.call import Call as Call
from tikv_rpc.client import RpcClient as RpcClient
from tikv_rpc.config import RpcConfig as RpcConfig
from tikv_rpc.intercept import Attempt as Attempt, Interceptor as Interceptor, Proceed as Proceed
from tikv_rpc.options import (
    DiskFull as DiskFull,
    Isolation as Isolation,
    Priority as Priority,
    ReplicaRead as ReplicaRead,
    RequestOptions as RequestOptions,
    Tagger as Tagger,
)
from tikv_rpc.request import Effect as Effect, Request as Request
from tikv_rpc.resource_errors import (
    ResourceGroupNotFound as ResourceGroupNotFound,
    ResourceGroupThrottled as ResourceGroupThrottled,
    ResourceGroupUnavailable as ResourceGroupUnavailable,
)
from tikv_rpc.waits import Totals as Totals, Waits as Waits
