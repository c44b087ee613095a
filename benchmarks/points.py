"""The async client's gets and puts beside bare gRPC, against the responder; and tikv-embedded serving one."""

from __future__ import annotations

from collections.abc import Awaitable

from bare import BareStore, in_place
from cases import Case, cpu, p50, rate, run_rounds
from servers import Server, only_region
from table import Section, at_least, at_most, cost_of, p50_of, rate_of, times
from tasks import in_tasks, one_by_one
from threads import KEYS, VALUE
from tikv_proto.services import Tikv
from tikv_raw import RawClient

TASKS = 256
SHORT = 3
"""How many short rounds there are for a round: the closer two runs, the more alike what else the machine did."""
PUMP, PUMP_OF_TASKS, SDK, UNARY = "bare pump", "pump of tasks", "SDK", "grpc.aio unary"
PLAIN = "plain pump of tasks"
PUMPS = (PUMP, PUMP_OF_TASKS)
"""The yardsticks; see bare.py."""
WAYS = (*PUMPS, SDK)

Cases = dict[str, Case]


async def measure(server: Server, rounds: int, scale: float) -> Cases:
    """Run the cases of one key at a time against the responder."""
    many, some, few = (max(int(count * scale), TASKS) for count in (30_000, 1_500, 500))
    context, address = await only_region(server.url)
    bare = BareStore(address, context, server.pid)
    get_unary = bare.unary(Tikv.RawGet)
    fill_get, fill_put = bare.get_filler(KEYS), bare.put_filler(KEYS, VALUE)
    async with RawClient(server.url) as client:

        def get(number: int) -> Awaitable[object]:
            return client.get(KEYS[number % len(KEYS)])

        def put(number: int) -> Awaitable[object]:
            return client.put(KEYS[number % len(KEYS)], VALUE)

        def unary(number: int) -> Awaitable[object]:
            return get_unary(bare.get_request(KEYS[number % len(KEYS)]))

        assert await get(0) == VALUE
        cases = await run_rounds(
            {
                f"get, {PUMP}": lambda: bare.pump(TASKS, many, fill_get, "RawGet"),
                f"get, {PUMP_OF_TASKS}": lambda: bare.pump_of_tasks(TASKS, many, in_place(fill_get), "RawGet"),
                f"get, {PLAIN}": lambda: bare.pump_of_tasks(TASKS, many, bare.plain_gets(KEYS), "RawGet"),
                f"get, {SDK}": lambda: in_tasks(server.pid, TASKS, many, get),
                f"get, {UNARY}": lambda: in_tasks(server.pid, TASKS, some, unary),
                f"put, {PUMP}": lambda: bare.pump(TASKS, many, fill_put, "RawPut"),
                f"put, {PUMP_OF_TASKS}": lambda: bare.pump_of_tasks(TASKS, many, in_place(fill_put), "RawPut"),
                f"put, {SDK}": lambda: in_tasks(server.pid, TASKS, many, put),
                f"get, 1 task, {SDK}": lambda: one_by_one(server.pid, few, get),
                f"get, 1 task, {UNARY}": lambda: one_by_one(server.pid, few, unary),
            },
            rounds * SHORT,
        )
    await bare.aclose()
    return cases


def sections(cases: Cases) -> list[Section]:
    """Return the rows of what `measure` measured."""
    gets, puts = ({way: cases[f"{kind}, {way}"] for way in WAYS} for kind in ("get", "put"))
    one, one_unary = cases[f"get, 1 task, {SDK}"], cases[f"get, 1 task, {UNARY}"]
    return [
        Section(
            f"async get, {TASKS} tasks, responder",
            [
                *(cost_of(f"client CPU, {way}", gets[way]) for way in PUMPS),
                *(cost_of(f"client CPU, {way}", cases[f"get, {way}"]) for way in (PLAIN, UNARY)),
                cost_of(f"client CPU, {SDK}", gets[SDK], at_most(16)),
                *(times(f"client CPU, {SDK} to {way}", gets[SDK], gets[way], cpu, at_most(1.9)) for way in PUMPS),
                times(f"client CPU, {SDK} to {PLAIN}", gets[SDK], cases[f"get, {PLAIN}"], cpu),
                *(times(f"throughput, {SDK} to {way}", gets[SDK], gets[way], rate, at_least(0.6)) for way in PUMPS),
                times(f"throughput, {SDK} to {UNARY}", gets[SDK], cases[f"get, {UNARY}"], rate, at_least(6)),
                times(f"client CPU, {UNARY} to {SDK}", cases[f"get, {UNARY}"], gets[SDK], cpu),
            ],
        ),
        Section(
            f"async put, {TASKS} tasks, responder",
            [
                *(cost_of(f"client CPU, {way}", puts[way]) for way in WAYS),
                *(times(f"client CPU, {SDK} to {way}", puts[SDK], puts[way], cpu, at_most(2)) for way in PUMPS),
            ],
        ),
        Section(
            "async get, 1 task, responder",
            [
                p50_of(f"p50, {UNARY}", one_unary),
                p50_of(f"p50, {SDK}", one),
                times(f"p50, {SDK} to {UNARY}", one, one_unary, p50, at_most(1.2)),
            ],
        ),
    ]


async def measure_embedded(server: Server, rounds: int, scale: float) -> Cases:
    """Run gets of one client against tikv-embedded."""
    many = max(int(30_000 * scale), TASKS)
    context, address = await only_region(server.url)
    bare = BareStore(address, context, server.pid)
    fill = bare.get_filler(KEYS)
    async with RawClient(server.url) as client:

        def get(number: int) -> Awaitable[object]:
            return client.get(KEYS[number % len(KEYS)])

        await client.batch_put(dict.fromkeys(KEYS, VALUE))
        cases = await run_rounds(
            {
                PUMP: lambda: bare.pump(TASKS, many, fill, "RawGet"),
                SDK: lambda: in_tasks(server.pid, TASKS, many, get),
            },
            rounds * SHORT,
        )
    await bare.aclose()
    return cases


def embedded_section(cases: Cases) -> Section:
    """Return the rows of what `measure_embedded` measured."""
    return Section(
        "tikv-embedded, gets through BatchCommands from one client",
        [rate_of(f"throughput, {way}, {TASKS} at once", case, at_least(40_000)) for way, case in cases.items()],
    )
