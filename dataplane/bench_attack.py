"""What a tuple space attack costs others (Csikor et al., "Tuple Space Explosion", CoNEXT 2019;
CVE-2019-25076): random packets against a policy of "allow some, deny the rest".

The attacker owns one endpoint and 1,000 rules of its network's, with as many different masks as can
be; it sends packets that no rule allows, no two alike. The victims are the other endpoints of the
network, whose flows only the last rule of all allows.
"""

import time
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from msgspec.structs import replace

from dataplane import bench_traffic
from dataplane.bench_play import HIT_VECTORS, MISS_VECTORS, VECTOR, Cycles, Player, Row
from dataplane.bench_traffic import ENDPOINTS, PREFIX, Traffic
from dataplane.engine import Engine
from dataplane.model import Acl, Node, PortRange

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RULES = 1000
VECTORS = 240  # of different frames
KNOWN = 1000  # the victims' flows, where they are not new ones
ATTACKER = ENDPOINTS - 1
TARGET = IPv4Network("10.128.0.0/9")  # of the attack, and of the attacker's rules
PAIRS = 9  # of windows at a time
CONTESTS = (("hit", 1024), ("hit", 256), ("miss", 256), ("miss", 32))  # every which is an attack


def policy(rules: int = RULES) -> Node:
    """The node of `bench_traffic` with the attacker's rules, then the victims'; no way out."""
    node = bench_traffic.policy(0)
    (network,) = node.networks
    last = Acl(name="victims", direction="out", action="allow", priority=65535, remote=(PREFIX,))
    acls = (*map(_rule, range(rules)), last)
    return replace(node, networks=(replace(network, acls=acls, outbound_nat=None),))


def _rule(i: int) -> Acl:
    """Masks of 23 lengths for the address and 16 for each port; one of two protocols."""
    address = int(TARGET[0]) | i * 2654435761 % TARGET.num_addresses
    return Acl(
        name=f"attacker-{i}",
        direction="out",
        action="allow",
        protocol="udp" if i % 2 else "tcp",
        remote=(IPv4Network((address, 10 + i % 23), strict=False),),
        local_ports=(_ports(i * 40503, i % 16),),
        remote_ports=(_ports(i * 30011, i // 16 % 16),),
    )


def _ports(number: int, free: int) -> PortRange:
    """Those that agree with the number but for the `free` lowest bits."""
    first = number % 65536 >> free << free
    return PortRange(first, first + (1 << free) - 1)


# ---- packets -----------------------------------------------------------------------------------


def mixed(engine: Engine, flows: int, every: int = 0) -> Traffic:
    """Frames of the victims' `flows`, round and round; each `every`-th is a random one instead."""
    import numpy as np

    victims = bench_traffic.traffic(engine, "encap", flows)
    turn = np.arange(VECTORS * VECTOR) % flows
    frames, ports = victims.frames[turn], victims.ports[turn]
    if every:
        frames[::every] = attacks(engine, len(frames[::every]))
        ports[::every] = engine.port_id(f"e{ATTACKER}")
    return Traffic(victims.flows, frames, ports)


def attacks(engine: Engine, n: int) -> "NDArray[np.uint8]":
    """Frames of the attacker that no rule allows, or no route takes."""
    import numpy as np

    rng = np.random.default_rng(4)
    own, router = bench_traffic.macs(engine)
    src = np.full(n, int(bench_traffic.address(0, ATTACKER)))
    dst = int(TARGET[0]) + rng.integers(0, TARGET.num_addresses, n)
    sport, dport = rng.integers(1, 65536, (2, n))
    return bench_traffic.udp_frames(router, own[ATTACKER], src, dst, sport, dport)


# ---- windows -----------------------------------------------------------------------------------


def engine_for(rules: int = RULES) -> Engine:
    engine = Engine(max_flows=2 * MISS_VECTORS * VECTOR, max_bindings=1, max_ports=64)
    engine.commit(policy(rules))
    return engine


class Contest:
    """The victims alone and under attack, in windows that take turns.

    `path`: hit, of flows that are known, or miss, of flows that are all new. Each `every`-th frame
    is the attacker's; what it costs is charged to the victims.
    """

    def __init__(self, engine: Engine, path: str, every: int) -> None:
        self._engine, self._new, self._every = engine, path == "miss", every
        flows = VECTORS * VECTOR if self._new else KNOWN
        self._alone = Player(engine, mixed(engine, flows))
        self._attacked = Player(engine, mixed(engine, flows, every))
        self.play(1)  # known flows are known from now on

    def play(self, pairs: int) -> tuple[Cycles, Cycles]:
        """Cycles a victim's packet, alone and under attack, of so many windows each."""
        import numpy as np

        vectors = MISS_VECTORS if self._new else HIT_VECTORS
        frames = vectors * VECTOR
        dropped = frames // self._every
        alone, attacked = np.empty((2, pairs))
        for i in range(pairs):
            alone[i] = self._window(self._alone, vectors, 0)
            attacked[i] = self._window(self._attacked, vectors, dropped)
        return alone, attacked * (frames / (frames - dropped))

    def _window(self, player: Player, vectors: int, dropped: int) -> float:
        if self._new:
            self._engine.flush()
        return float(player.play(vectors, dropped=dropped)[0])


def measure(rate: float, seconds: float) -> list[Row]:
    """One row for each path and density of the attack, each of about so many seconds.

    `rate`: cycles a nanosecond.
    """
    import numpy as np

    rows: list[Row] = []
    with engine_for() as engine:
        for path, every in CONTESTS:
            contest = Contest(engine, path, every)
            found = [contest.play(PAIRS)]
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                found.append(contest.play(PAIRS))
            rows.append(_row(path, every, rate, *np.concatenate(found, axis=1)))
    return rows


def _row(path: str, every: int, rate: float, alone: Cycles, attacked: Cycles) -> Row:
    import numpy as np

    return {
        "work": "attack",
        "path": path,
        "acl_rules": RULES,
        "one_in": every,
        "attack_kpps": round(1e6 * rate / (every * float(attacked.min()))),
        "cycles_per_packet": round(float(alone.min()), 1),
        "attacked_cycles_per_packet": round(float(attacked.min()), 1),
        "ratio": round(float(attacked.min() / alone.min()), 3),
        "median_ratio": round(float(np.median(attacked / alone)), 3),
    }
