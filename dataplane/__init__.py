"""A userspace VXLAN dataplane: VFP's layers and unified flow table, programmed from Python.

    with dataplane.Engine() as engine:
        engine.commit(dataplane.load("node.yaml"))
        outcome = engine.process_one(frame, port="web")

The names below are imported when first used, so that the command line starts without the engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same list again, for those who check types
    from dataplane.batch import Batch as Batch
    from dataplane.batch import Result as Result
    from dataplane.clock import SimClock as SimClock
    from dataplane.document import dump as dump
    from dataplane.document import load as load
    from dataplane.document import loads as loads
    from dataplane.draft import Draft as Draft
    from dataplane.engine import Engine as Engine
    from dataplane.engine import Outcome as Outcome
    from dataplane.errors import BusyError as BusyError
    from dataplane.errors import DataplaneError as DataplaneError
    from dataplane.errors import DocumentError as DocumentError
    from dataplane.errors import EngineError as EngineError
    from dataplane.errors import PacketError as PacketError
    from dataplane.errors import PortError as PortError
    from dataplane.expect import prove as prove
    from dataplane.forwarder import Forwarder as Forwarder
    from dataplane.lab import Lab as Lab
    from dataplane.plan import Plan as Plan
    from dataplane.reasons import Reason as Reason
    from dataplane.reasons import Verdict as Verdict
    from dataplane.stats import Stats as Stats
    from dataplane.trace import Walk as Walk

_HOMES = {
    "Batch": "batch",
    "BusyError": "errors",
    "DataplaneError": "errors",
    "DocumentError": "errors",
    "Engine": "engine",
    "EngineError": "errors",
    "Forwarder": "forwarder",
    "Lab": "lab",
    "Outcome": "engine",
    "PacketError": "errors",
    "Draft": "draft",
    "Plan": "plan",
    "PortError": "errors",
    "Reason": "reasons",
    "Result": "batch",
    "SimClock": "clock",
    "Stats": "stats",
    "Timers": "model",
    "Verdict": "reasons",
    "Walk": "trace",
    "dump": "document",
    "load": "document",
    "loads": "document",
    "prove": "expect",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
