"""What `bench` measures with: one node's policy, and the frames of its flows.

The place of a flow's far end says which way it goes: place 0 is the endpoints' own subnet, then
come the remote subnets, the last one lies outside the overlay. ACL rules are spread evenly over all
places, then over bands of ports, so that flows meet all of them alike. Each remote subnet has the
VIP of one service, whose backends lie in others.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Literal, NamedTuple

from msgspec.structs import replace

from dataplane.address import Mac, Vni
from dataplane.engine import Engine
from dataplane.model import (
    Acl,
    Backend,
    Endpoint,
    HostPort,
    LoadBalancer,
    Network,
    Node,
    OutboundNat,
    PortRange,
    RemoteSubnet,
    Tap,
    Underlay,
)
from dataplane.packet_build import build, vxlan
from dataplane.packet_spec import PacketSpec
from dataplane.rules import host_mac, underlay_mac

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Work = Literal["encap", "decap", "local", "nat", "service"]
WORKS: tuple[Work, ...] = ("encap", "decap", "local", "nat", "service")

ENDPOINTS = 16
PLACES = 100
PORTS = 1000  # source ports of an endpoint, and destination ports
FIRST_SPORT, FIRST_DPORT = 40_000, 5_000
BINDINGS = ENDPOINTS * PORTS  # so many flows have a NAT binding each; more share them
MAX_FLOWS = BINDINGS * (PLACES - 2)
VIP_HOST, VIP_PORTS = 230, PORTS // PLACES  # of a service; the port's distance to the next one's
BACKENDS, BACKEND_HOST, BACKEND_PORT = 8, 231, 8080  # in as many subnets
INNER = 64  # bytes
VNI = Vni(4096)
UNDERLAY, LINK, LINK_PEER = (IPv4Address(a) for a in ("192.0.2.1", "169.254.1.1", "169.254.1.2"))
REMOTE_DR = Mac("02:00:5e:00:00:02")
PREFIX = IPv4Network("10.1.0.0/16")
OUTSIDE = IPv4Network("203.0.113.0/24")
SUBNETS = (*(IPv4Network(f"10.1.{i}.0/24") for i in range(PLACES - 1)), OUTSIDE)  # by place


# ---- policy ------------------------------------------------------------------------------------


def policy(acl_rules: int) -> Node:
    """Guard, `acl_rules` stateful ACL rules each way, services, NAT with exceptions, routes.

    `acl_rules`: 0, or a multiple of 100 that divides 100,000.
    """
    network = Network(
        name="bench",
        vni=VNI,
        prefixes=(PREFIX,),
        remote_subnets=tuple(
            RemoteSubnet(prefix=SUBNETS[i], provider_address=provider(i), dr_mac=REMOTE_DR)
            for i in range(1, PLACES - 1)
        ),
        endpoints=tuple(
            Endpoint(name=f"e{i}", addresses=(address(0, i),)) for i in range(ENDPOINTS)
        ),
        acls=tuple(_acls(acl_rules)),
        load_balancers=tuple(_service(place) for place in range(1, PLACES - 1)),
        outbound_nat=OutboundNat(
            exceptions=(IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16"))
        ),
    )
    host = HostPort(address=LINK, peer=LINK_PEER, tap=Tap(name="bench-host"))
    return Node(
        name="bench", underlay=Underlay(address=UNDERLAY), host_port=host, networks=(network,)
    )


def provider(place: int) -> IPv4Address:
    return IPv4Address(f"198.51.100.{place}")


def address(place: int, host: int) -> IPv4Address:
    return SUBNETS[place][10 + host]


def _service(place: int) -> LoadBalancer:
    return LoadBalancer(
        name=f"service-{place}",
        protocol="udp",
        port=FIRST_DPORT + place * VIP_PORTS,
        vips=(address(place, VIP_HOST),),
        target_port=BACKEND_PORT,
        backends=tuple(
            Backend(address=address(other, BACKEND_HOST)) for other in backend_places(place)
        ),
    )


def backend_places(place: int) -> list[int]:
    """Where the backends of a service are."""
    remotes = PLACES - 2
    return [1 + (place + i * remotes // BACKENDS) % remotes for i in range(BACKENDS)]


def _acls(n: int) -> Iterator[Acl]:
    width = PORTS * PLACES // n if n else 0
    for i in range(n):
        first = FIRST_DPORT + i // PLACES * width
        rule = Acl(
            name=f"out-{i}",
            direction="out",
            action="allow",
            protocol="udp",
            remote=(SUBNETS[i % PLACES],),
            remote_ports=(PortRange(first, first + width - 1),),
        )
        yield rule
        yield replace(
            rule,
            name=f"in-{i}",
            direction="in",
            local_ports=rule.remote_ports,
            remote_ports=(),
        )


# ---- flows -------------------------------------------------------------------------------------


class Flow(NamedTuple):
    """By flow: numbers, or columns of them. No two flows are equal."""

    endpoint: "NDArray[np.int64]"
    place: "NDArray[np.int64]"
    host: "NDArray[np.int64]"  # within the place
    near_port: "NDArray[np.int64]"
    far_port: "NDArray[np.int64]"


class Traffic(NamedTuple):
    """One frame of each flow, in shuffled order. All arrays are contiguous."""

    flows: Flow
    frames: "NDArray[np.uint8]"  # [n, bytes]
    ports: "NDArray[np.uint16]"  # ingress, by id


def traffic(engine: Engine, work: Work, n: int) -> Traffic:
    """The frames of `n` flows (up to MAX_FLOWS): UDP over IPv4, for decap with VXLAN around."""
    import numpy as np

    flows = _flows(work, np.random.default_rng(1).permutation(n))
    near = np.array([int(address(0, i)) for i in range(ENDPOINTS)])[flows.endpoint]
    far = np.array([int(s[10]) for s in SUBNETS])[flows.place] + flows.host
    own, router = macs(engine)
    if work == "decap":
        inner = _inner_frames(router, far, near, flows)
        return Traffic(flows, _encapsulated(inner, flows), np.zeros(n, np.uint16))
    inner = _inner_frames(router, near, far, flows)
    inner[:, 6:12] = np.frombuffer(b"".join(m.packed for m in own), np.uint8).reshape(-1, 6)[
        flows.endpoint
    ]
    ids = np.array([engine.port_id(f"e{i}") for i in range(ENDPOINTS)], np.uint16)
    return Traffic(flows, inner, ids[flows.endpoint])


def _flows(work: Work, number: "NDArray[np.int64]") -> Flow:
    """The endpoint turns fastest, then the near port; the far end differs where both are equal."""
    endpoint, rest = number % ENDPOINTS, number // ENDPOINTS
    turn = rest // PORTS
    remotes = 1 + (rest % PORTS + turn) % (PLACES - 2)
    place = {"local": 0 * rest, "nat": 0 * rest + PLACES - 1}.get(work, remotes)
    host = (endpoint + 1 + rest % (ENDPOINTS - 1)) % ENDPOINTS if work == "local" else rest % 200
    far_port = FIRST_DPORT + (37 * rest + 101 * turn) % PORTS
    if work == "service":
        host, far_port = 0 * rest + VIP_HOST, FIRST_DPORT + place * VIP_PORTS
    return Flow(endpoint, place, host, FIRST_SPORT + rest % PORTS, far_port)


def macs(engine: Engine) -> tuple[list[Mac], Mac]:
    """Of the endpoints, and of the distributed router."""
    assert engine.resolved is not None
    (network,) = engine.resolved.networks
    assert network.dr_mac is not None
    return [e.mac for e in network.endpoints if e.mac is not None], network.dr_mac


def udp_frames(
    dmac: Mac,
    smac: Mac,
    src: "NDArray[np.int64]",
    dst: "NDArray[np.int64]",
    sport: "NDArray[np.int64]",
    dport: "NDArray[np.int64]",
    size: int = INNER,
) -> "NDArray[np.uint8]":
    """Frames [n, size] of Ethernet, IPv4 (DF, TTL 64) and UDP: no payload, no UDP checksum."""
    import numpy as np

    frames = np.zeros((len(src), size), np.uint8)
    frames[:, :14] = np.frombuffer(dmac.packed + smac.packed + b"\x08\x00", np.uint8)
    words = frames.view(">u2")
    words[:, 7:13] = 0x4500, size - 14, 0, 0x4000, 0x4011, 0
    for at, value in ((13, src), (15, dst)):
        words[:, at], words[:, at + 1] = value >> 16, value & 0xFFFF
    words[:, 12] = _checksum(words[:, 7:17])
    words[:, 17], words[:, 18], words[:, 19] = sport, dport, size - 34
    return frames


def _checksum(words: "NDArray[np.uint16]", more: int = 0) -> "NDArray[np.int64]":
    import numpy as np

    total: NDArray[np.int64] = words.sum(axis=1, dtype=np.int64) + more
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def _inner_frames(
    dmac: Mac, src: "NDArray[np.int64]", dst: "NDArray[np.int64]", flows: Flow
) -> "NDArray[np.uint8]":
    import numpy as np

    frames = udp_frames(dmac, REMOTE_DR, src, dst, flows.near_port, flows.far_port)
    frames[:, 42:] = np.arange(INNER - 42)
    words = frames.view(">u2")
    found = _checksum(words[:, 13:], 17 + INNER - 34)
    words[:, 20] = np.where(found == 0, 0xFFFF, found)
    return frames


def _encapsulated(inner: "NDArray[np.uint8]", flows: Flow) -> "NDArray[np.uint8]":
    import numpy as np

    far = np.array([int(provider(max(i, 1))) for i in range(PLACES)])[flows.place]
    entropy = 49152 + (flows.near_port * 7 + flows.far_port) % 16384
    here = np.full(len(inner), int(UNDERLAY))
    mac, peer = underlay_mac(UNDERLAY), underlay_mac(provider(1))
    outer = udp_frames(mac, peer, far, here, entropy, 0 * far + 4789, 50 + INNER)
    outer[:, 42:50] = np.frombuffer(b"\x08\0\0\0" + VNI.to_bytes(3) + b"\0", np.uint8)
    outer[:, 50:] = inner
    return outer


# ---- what must come out ------------------------------------------------------------------------


def expected(engine: Engine, work: Work, flow: Flow, out: bytes) -> bytes:
    """The frame that a flow's packet must leave as, made from scratch.

    Of `out`, what did leave, only what the engine is free to choose is taken: the outer source port
    (49152-65535), the port of a NAT binding (1024-65535), which of its backends a service chose.
    """
    own, router = macs(engine)
    near, far = address(0, int(flow.endpoint)), address(int(flow.place), int(flow.host))
    mac = own[int(flow.endpoint)]
    if work == "decap":
        return _inner(far, near, flow, 64, router, mac)
    if work == "local":
        return _inner(near, far, flow, 63, router, own[int(flow.host)])
    if work == "nat":
        chosen = max(int.from_bytes(out[34:36]), 1024)
        return _inner(LINK, far, flow, 63, host_mac(LINK), host_mac(LINK_PEER), chosen)
    place, inner = int(flow.place), _inner(near, far, flow, 63, router, REMOTE_DR)
    if work == "service":
        place = _backend_place(place, out)
        far = address(place, BACKEND_HOST)
        inner = _inner(near, far, flow, 63, router, REMOTE_DR, dport=BACKEND_PORT)
    remote = provider(place)
    return vxlan(
        inner,
        src=UNDERLAY,
        dst=remote,
        vni=VNI,
        smac=underlay_mac(UNDERLAY),
        dmac=underlay_mac(remote),
        sport=max(int.from_bytes(out[34:36]), 49152),
    )


def _backend_place(place: int, out: bytes) -> int:
    """Of the backend that `out` is on its way to, or of any one."""
    places = backend_places(place)
    chosen = (p for p in places if out[30:34] == provider(p).packed)
    return next(chosen, places[0])


def _inner(
    src: IPv4Address,
    dst: IPv4Address,
    flow: Flow,
    ttl: int,
    smac: Mac,
    dmac: Mac,
    sport: int | None = None,
    dport: int | None = None,
) -> bytes:
    spec = PacketSpec(
        kind="udp",
        src=src,
        dst=dst,
        proto=17,
        sport=int(flow.near_port) if sport is None else sport,
        dport=int(flow.far_port) if dport is None else dport,
        length=INNER - 42,
        ttl=ttl,
        df=True,
    )
    return build(spec, smac, dmac)
