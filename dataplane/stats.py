"""Stats: the engine's counters at one moment, by name; two of them subtract."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dataplane._engine import ffi, lib
from dataplane.errors import EngineError
from dataplane.ids import Ids
from dataplane.layers import LAYERS
from dataplane.reasons import Reason, check
from dataplane.records import dtype

GAUGES = frozenset({"held", "paths", "flows", "bindings", "generation"})
EXITS = ("forwarded", "dropped", "consumed", "held")
TRIES = 8
ELIMIT = -4  # status.def

Key = TypeVar("Key")


def adds_up(totals: Mapping[str, int]) -> bool:
    """The law: rx + copies == forwarded + dropped + consumed + held."""
    went_in = totals["rx"] + totals["copies"]
    return went_in == sum(totals[k] for k in EXITS)


@dataclass(frozen=True, slots=True)
class Stats:
    """See `adds_up`. Reasons and rules that never counted are left out.

    `now_ns` is the engine's time of the reading; of a difference, the time in between.
    """

    now_ns: int
    totals: Mapping[str, int]
    reasons: Mapping[Reason, int]
    ports: Mapping[str, Mapping[str, int]]
    rules: Mapping[str, int]
    layers: Mapping[str, int]

    def __sub__(self, earlier: "Stats") -> "Stats":
        """What was counted since; of gauges (held, flows, generation, …) the later value."""
        since = _minus(self.totals, earlier.totals)
        return Stats(
            now_ns=self.now_ns - earlier.now_ns,
            totals=since | {name: self.totals[name] for name in GAUGES},
            reasons=_minus(self.reasons, earlier.reasons),
            ports={p: _minus(c, earlier.ports.get(p, {})) for p, c in self.ports.items()},
            rules=_minus(self.rules, earlier.rules),
            layers=_minus(self.layers, earlier.layers),
        )

    def rates(self) -> dict[str, float]:
        """Of a difference: totals per second of the engine's time."""
        seconds = self.now_ns / 1e9
        return {
            n: c / seconds if seconds else 0.0 for n, c in self.totals.items() if n not in GAUGES
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "now_ns": self.now_ns,
            "totals": dict(self.totals),
            "reasons": {str(r): n for r, n in self.reasons.items()},
            "ports": {port: dict(counters) for port, counters in self.ports.items()},
            "rules": dict(self.rules),
            "layers": dict(self.layers),
        }


def _minus(later: Mapping[Key, int], earlier: Mapping[Key, int]) -> dict[Key, int]:
    return {key: n - earlier.get(key, 0) for key, n in later.items()}


class Counters:
    """Reads one engine's counters. Whoever gets a number that was another's starts at zero."""

    def __init__(self, engine: Any, max_ports: int, max_rules: int) -> None:
        import numpy as np

        self._engine = engine
        self._totals = np.zeros(1, dtype("dp_totals"))
        self._reasons = np.zeros(lib.dp_reason_count(), np.uint64)
        self._ports = np.zeros(max_ports, dtype("dp_port_counters"))
        self._rules = np.zeros(max_rules, np.uint64)
        self._layers = np.zeros(lib.DP_LAYERS, np.uint64)
        self._base_ports = np.zeros((max_ports, len(self._ports.dtype.names or ())), np.uint64)
        self._base_rules = np.zeros(max_rules, np.uint64)

    def rebase(self, old: Ids, new: Ids) -> None:
        """Before a commit: what counted under numbers that change hands is not the new owner's.

        Raises EngineError where a number is beyond what the engine was created for.
        """
        ports = sorted(set(new.ports.values()) - set(old.ports.values()))
        rules = sorted(set(new.rules.values()) - set(old.rules.values()))
        for what, numbers, limit in (("port", ports, self._ports), ("rule", rules, self._rules)):
            if numbers and numbers[-1] >= len(limit):
                raise EngineError(
                    ELIMIT,
                    f"{what} number {numbers[-1]}, but max_{what}s is {len(limit)}: "
                    f"give the engine more (Engine(max_{what}s=…)"
                    f"{', run --max-rules' if what == 'rule' else ''})",
                )
        self._read(max(ports, default=-1) + 1, max(rules, default=-1) + 1)
        self._base_ports[ports] = self._port_columns()[ports]
        self._base_rules[rules] = self._rules[rules]

    def stats(self, ids: Ids, now_ns: int) -> Stats:
        """One reading, taken again a few times if frames were being counted meanwhile."""
        n_ports = max(ids.ports.values(), default=-1) + 1
        n_rules = max(ids.rules.values(), default=-1) + 1
        for _ in range(TRIES):
            totals = self._read(n_ports, n_rules)
            if adds_up(totals):
                break
        ports = self._port_columns() - self._base_ports
        fields = self._ports.dtype.names or ()
        rules = (self._rules - self._base_rules).tolist()
        reasons = enumerate(self._reasons.tolist())
        return Stats(
            now_ns=now_ns,
            totals=totals,
            reasons={Reason(i): n for i, n in reasons if n},
            ports={
                name: dict(zip(fields, ports[i].tolist(), strict=True))
                for name, i in ids.ports.items()
            },
            rules={ids.rule_names[i]: n for i, n in enumerate(rules) if n and i in ids.rule_names},
            layers={name: int(self._layers[i]) for name, i in LAYERS.items()},
        )

    def _port_columns(self) -> Any:
        import numpy as np

        return self._ports.view(np.uint64).reshape(len(self._ports), -1)

    def _read(self, n_ports: int, n_rules: int) -> dict[str, int]:
        check(
            lib.dp_counters(
                self._engine,
                ffi.from_buffer("struct dp_totals *", self._totals),
                ffi.from_buffer("uint64_t[]", self._reasons),
                len(self._reasons),
                ffi.from_buffer("struct dp_port_counters[]", self._ports),
                n_ports,
                ffi.from_buffer("uint64_t[]", self._rules),
                n_rules,
                ffi.from_buffer("uint64_t[]", self._layers),
                len(self._layers),
            )
        )
        return {name: int(self._totals[name][0]) for name in self._totals.dtype.names or ()}
