"""All that one PD member answers, put together."""

from __future__ import annotations

from tikv_embedded.pd.gc_service import PdGcService
from tikv_embedded.pd.global_config_service import GlobalConfigService
from tikv_embedded.pd.keyspace_service import PdKeyspaceService
from tikv_embedded.pd.members import PdMember
from tikv_embedded.pd.meta_storage_service import MetaStorageService
from tikv_embedded.pd.registration_service import PdRegistrationService
from tikv_embedded.pd.resource_manager_service import ResourceManagerService
from tikv_embedded.pd.service import PdService
from tikv_embedded.pd.state import PdState
from tikv_embedded.pd.timestamp_service import PdTimestampService
from tikv_embedded.rpc_handlers import Handler


def pd_handlers(state: PdState, member: PdMember) -> list[Handler]:
    """Return the handlers of a member, of all its services, with the faults in front of them."""
    services = (
        PdService(state, member),
        PdKeyspaceService(state, member),
        PdGcService(state, member),
        PdTimestampService(state, member),
        PdRegistrationService(state, member),
        MetaStorageService(state, member),
        GlobalConfigService(state),
        ResourceManagerService(state, lambda: state.members.leader == member),
    )
    position = state.members.members.index(member)
    handlers = [handler for service in services for handler in service.handlers()]
    return [state.faults.around(handler, position) for handler in (*handlers, *state.health[position].handlers())]
