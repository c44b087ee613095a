"""Resource control: request units, and tokens for them, by resource group. Imported by those who use it.

How requests are refused is in `tikv_rpc` itself, as whoever makes them may have to deal with it.

cost          what requests cost in request units (pure)
charge        what of the messages decides that (pure)
ru_v2         the second model of request units (pure)
bucket        the tokens of a group (pure)
group         one group: what it used, what it asks PD for (pure)
settings      what PD and the client set
source        what is needed of PD
controller    the groups at work, and the task that gets tokens
details       what requests cost, for callers
stats         how groups do, and what is counted of them
interceptor   `ResourceControl`
"""

from tikv_rpc.resource_control.cost import RuModel as RuModel
from tikv_rpc.resource_control.details import (
    RuCollector as RuCollector,
    RuDetails as RuDetails,
    collect_ru as collect_ru,
)
from tikv_rpc.resource_control.interceptor import ResourceControl as ResourceControl
from tikv_rpc.resource_control.ru_v2 import RuV2Weights as RuV2Weights
from tikv_rpc.resource_control.settings import ResourceControlConfig as ResourceControlConfig
from tikv_rpc.resource_control.source import PdTokens as PdTokens, TokenSource as TokenSource
from tikv_rpc.resource_control.stats import (
    GroupCounts as GroupCounts,
    GroupStats as GroupStats,
    RuSeries as RuSeries,
)
