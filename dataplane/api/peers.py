"""The other VTEPs: what passes between them and us, and whether they answer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dataplane.engine import Engine
from dataplane.ids import UNDERLAY_PORT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Resource = dict[str, Any]
STATES = ("up", "silent", "idle")
UNANSWERED = 10.0  # seconds by which our last packet is younger than one of a silent peer
RESTED = 120.0  # seconds without a packet either way, as long as TCP waits at most: idle


class Direction(NamedTuple):
    """What was sent one way; `last_ns` is 0 where nothing was."""

    packets: int = 0
    bytes: int = 0
    last_ns: int = 0

    def and_also(self, other: "Direction") -> "Direction":
        last_ns = max(self.last_ns, other.last_ns)
        return Direction(self.packets + other.packets, self.bytes + other.bytes, last_ns)


class Traffic(NamedTuple):
    """With one peer, of the flows that are alive."""

    rx: Direction = Direction()
    tx: Direction = Direction()


def peers(engine: Engine) -> Iterator[Resource]:
    """Each peer with the traffic of the flows that are alive; ages in seconds.

    `state` is idle where neither side sent for RESTED seconds; silent where nothing ever came, or
    our last packet is UNANSWERED seconds younger than the peer's; else up. After a pause a peer is
    silent until its first answer is here.
    """
    policy = engine.resolved
    assert policy is not None, "a running node has a policy"
    found: dict[str, Resource] = {}
    for network in policy.networks:
        for subnet in network.remote_subnets:
            provider = str(subnet.provider_address)
            peer = found.setdefault(
                provider, {"name": provider, "networks": [], "subnets": 0, "mtu": network.mtu}
            )
            peer["subnets"] += 1
            peer["mtu"] = min(peer["mtu"], network.mtu)
            if network.name not in peer["networks"]:
                peer["networks"].append(network.name)
    traffic, now = (_traffic(engine) if found else {}), engine.clock.now_ns()
    for provider, peer in found.items():
        yield peer | _told(traffic.get(provider, Traffic()), now)


def _traffic(engine: Engine) -> dict[str, Traffic]:
    import numpy as np

    records, names = engine.flow_records(), engine.ids.adjacency_names
    inward = records["in_port"] == UNDERLAY_PORT  # begun by the peer: it sent the first half
    received = np.where(inward, 0, 1)
    told: dict[str, Traffic] = {}
    for number in np.unique(records["adjacency"]).tolist():
        if number not in names:
            continue
        (of,) = np.nonzero(records["adjacency"] == number)
        rx, tx = (_direction(records[of], half[of]) for half in (received, 1 - received))
        old = told.get(str(names[number]), Traffic())
        told[str(names[number])] = Traffic(old.rx.and_also(rx), old.tx.and_also(tx))
    return told


def _direction(records: "NDArray[np.void]", half: "NDArray[np.intp]") -> Direction:
    """The sum over flows [n], of each the half [n]."""
    import numpy as np

    each = np.arange(len(records))
    packets, octets, last = (records[f][each, half] for f in ("packets", "bytes", "last_ns"))
    return Direction(int(packets.sum()), int(octets.sum()), int(last[packets > 0].max(initial=0)))


def _told(traffic: Traffic, now: int) -> Resource:
    rx, tx = traffic
    return {
        "rx_packets": rx.packets,
        "tx_packets": tx.packets,
        "rx_bytes": rx.bytes,
        "tx_bytes": tx.bytes,
        "last_rx": _age(rx, now),
        "last_tx": _age(tx, now),
        "state": _state(_age(rx, now), _age(tx, now)),
    }


def _age(direction: Direction, now: int) -> float | None:
    """Of its last packet, in seconds; a worker's clock may be ahead by a burst."""
    return round(max(now - direction.last_ns, 0) / 1e9, 3) if direction.last_ns else None


def _state(rx: float | None, tx: float | None) -> str:
    """`rx`, `tx`: seconds since the last packet of either way."""
    ages = [age for age in (rx, tx) if age is not None]
    if not ages or min(ages) > RESTED:
        return "idle"
    if tx is not None and (rx is None or rx - tx > UNANSWERED):
        return "silent"
    return "up"
