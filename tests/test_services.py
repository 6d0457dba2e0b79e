"""Services, port mappings, NAT modes, host routes and routing domains, packet by packet.

Three nodes: a serves the clients and balances, b and c hold backends.
"""

import struct
from collections import Counter
from contextlib import nullcontext
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from msgspec.structs import replace

from dataplane import DocumentError, Engine, Reason, Verdict
from dataplane._engine import lib
from dataplane.address import Mac, Vni
from dataplane.defaults import dr_mac, endpoint_mac
from dataplane.document import loads
from dataplane.engine import Outcome
from dataplane.model import (
    Backend,
    DirectSubnet,
    Endpoint,
    HostPort,
    LoadBalancer,
    Network,
    Node,
    OutboundNat,
    PortMapping,
    PortRange,
    RemoteSubnet,
    Tap,
    Underlay,
)
from dataplane.packet import build, describe, parse, vxlan
from dataplane.rules import host_mac
from tests.reference.build import error_about
from tests.reference.checksum import checksum

VIP, OUTSIDE = "10.96.0.10", "203.0.113.9"
PEER = Mac("02:00:00:00:0b:00")
WEB, DB = (
    Endpoint(name=n, addresses=(ip_address(a),))
    for n, a in (("web", "10.1.1.2"), ("db", "10.1.1.3"))
)


def subnet(prefix: str, provider: str, **fields: bool) -> RemoteSubnet:
    return RemoteSubnet(
        prefix=ip_network(prefix), provider_address=ip_address(provider), dr_mac=PEER, **fields
    )


def balancer(*backends: str | Backend, **fields) -> LoadBalancer:
    made = tuple(b if isinstance(b, Backend) else Backend(address=ip_address(b)) for b in backends)
    base = {"name": "shop", "protocol": "tcp", "port": 80, "target_port": 8080}
    return LoadBalancer(**base | {"vips": (ip_address(VIP),), "backends": made} | fields)


def network(*balancers: LoadBalancer, **fields) -> Network:
    base = {
        "name": "blue",
        "vni": Vni(4096),
        "prefixes": (ip_network("10.1.0.0/16"),),
        "remote_subnets": (subnet("10.1.2.0/24", "192.0.2.2"), subnet("10.1.3.0/24", "192.0.2.3")),
        "endpoints": (WEB, DB),
        "load_balancers": balancers,
    }
    return Network(**base | fields)


def node(*networks: Network) -> Node:
    return Node(
        name="a",
        underlay=Underlay(address=ip_address("192.0.2.1")),
        host_port=HostPort(
            address=ip_address("198.51.100.1"),
            peer=ip_address("198.51.100.2"),
            tap=Tap(name="dp0"),
        ),
        networks=networks,
    )


class World:
    """An engine and frames of its ports."""

    def __init__(self, *networks: Network, **limits: int) -> None:
        self.engine = Engine(
            key=bytes(range(32)), **{"max_flows": 4096, "max_bindings": 4096} | limits
        )
        self.commit(*networks)

    def commit(self, *networks: Network) -> None:
        self.node = node(*networks)
        self.engine.commit(self.node)

    def router(self, name: str = "blue") -> Mac:
        (found,) = (n for n in self.node.networks if n.name == name)
        return dr_mac(found, self.node)

    def at(self, endpoint: Endpoint, words: str, name: str = "blue", now: int = 0) -> Outcome:
        frame = build(parse(words), endpoint_mac(endpoint), self.router(name))
        return self.engine.process_one(frame, f"{name}/{endpoint.name}", now=now)

    def host(self, words: str, now: int = 0) -> Outcome:
        port = self.node.host_port
        frame = build(parse(words), host_mac(port.peer), host_mac(port.address))
        return self.engine.process_one(frame, "host", now=now)

    def underlay(self, words: str, provider: str = "192.0.2.2", vni: int = 4096) -> Outcome:
        (name,) = (n.name for n in self.node.networks if n.vni == vni)
        inner = build(parse(words), PEER, self.router(name))
        frame = vxlan(
            inner,
            src=ip_address(provider),
            dst=self.node.underlay.address,
            vni=vni,
            smac="02:00:00:00:00:01",
            dmac="02:00:00:00:00:02",
        )
        return self.engine.process_one(frame, "underlay", now=0)


def seen(outcome: Outcome) -> tuple[str | None, str, str]:
    """Egress port, source and destination of the inner packet as it left."""
    assert outcome.verdict is Verdict.FORWARD, outcome
    frame = outcome.frame[50:] if outcome.port == "underlay" else outcome.frame
    fields = describe(frame)
    return (
        outcome.port,
        f"{fields['src']}:{fields.get('sport')}",
        f"{fields['dst']}:{fields.get('dport')}",
    )


# ---- load balancers ----------------------------------------------------------------------------


def test_a_local_backend_and_its_answer() -> None:
    world = World(network(balancer("10.1.1.3")))
    there = world.at(WEB, f"tcp 10.1.1.2:4000 > {VIP}:80 syn")
    assert seen(there) == ("blue/db", "10.1.1.2:4000", "10.1.1.3:8080")
    assert there.rule == "blue/shop"
    back = world.at(DB, "tcp 10.1.1.3:8080 > 10.1.1.2:4000 syn ack")
    assert seen(back) == ("blue/web", f"{VIP}:80", "10.1.1.2:4000")
    assert world.engine.stats().totals["local"] == 2


def test_a_neighbour_answers_its_client_by_the_link_they_share() -> None:
    """It has the client's own MAC address from ARP, and knows nothing of a VIP."""
    world = World(network(balancer("10.1.1.3")))
    world.at(WEB, f"tcp 10.1.1.2:4000 > {VIP}:80 syn")
    answer = parse("tcp 10.1.1.3:8080 > 10.1.1.2:4000 syn ack")
    frame = build(answer, endpoint_mac(DB), endpoint_mac(WEB))
    back = world.engine.process_one(frame, "blue/db", now=0)
    assert seen(back) == ("blue/web", f"{VIP}:80", "10.1.1.2:4000")
    assert back.frame[:6] == endpoint_mac(WEB).packed
    stray = build(answer, endpoint_mac(DB), PEER)
    assert world.engine.process_one(stray, "blue/db", now=0).reason is Reason["NOT_OUR_MAC"]


def test_a_remote_backend_and_its_answer() -> None:
    world = World(network(balancer("10.1.2.9")))
    there = world.at(WEB, f"tcp 10.1.1.2:4000 > {VIP}:80 syn")
    assert seen(there) == ("underlay", "10.1.1.2:4000", "10.1.2.9:8080")
    back = world.underlay("tcp 10.1.2.9:8080 > 10.1.1.2:4000 syn ack")
    assert seen(back) == ("blue/web", f"{VIP}:80", "10.1.1.2:4000")
    assert world.engine.stats().totals["local"] == 0


def test_a_client_that_is_its_own_backend() -> None:
    world = World(network(balancer("10.1.1.2")))
    there = world.at(WEB, f"tcp 10.1.1.2:4000 > {VIP}:80 syn")
    port, source, target = seen(there)
    assert (port, target) == ("blue/web", "10.1.1.2:8080") and source.startswith("10.1.0.1:")
    back = world.at(WEB, f"tcp 10.1.1.2:8080 > {source} syn ack")
    assert seen(back) == ("blue/web", f"{VIP}:80", "10.1.1.2:4000")


def test_what_no_service_takes() -> None:
    world = World(network(balancer("10.1.1.3"), balancer(name="empty", port=81)))
    outcome = world.at(WEB, f"tcp 10.1.1.2:4000 > {VIP}:82 syn")
    assert outcome.reason is Reason["LB_NO_SERVICE"]
    outcome = world.at(WEB, f"tcp 10.1.1.2:4000 > {VIP}:81 syn")
    assert outcome.reason is Reason["LB_NO_BACKEND"]
    assert (describe(outcome.frame)["type"], describe(outcome.frame)["code"]) == (3, 3)


def spread(world: World, count: int = 2000) -> dict[int, str]:
    """By client port: the backend."""
    found = {}
    for port in range(1024, 1024 + count):
        outcome = world.at(WEB, f"tcp 10.1.1.2:{port} > {VIP}:80 syn")
        found[port] = seen(outcome)[2]
    return found


@pytest.mark.conformance("N6")
def test_one_of_many_backends_goes_and_comes_back() -> None:
    """No established flow moves, but those of the backend that is gone; of new ones about 1/n."""
    addresses = [f"10.1.2.{i}" for i in range(1, 101)]
    world = World(network(balancer(*addresses)))
    before = spread(world)
    shares = Counter(before.values())
    assert len(shares) == 100 and max(shares.values()) < 3 * 20
    gone = addresses[17]
    world.commit(network(balancer(*[a for a in addresses if a != gone])))
    after = spread(world)
    stays = {p for p, backend in before.items() if not backend.startswith(f"{gone}:")}
    assert all(after[p] == before[p] for p in stays)
    assert all(not after[p].startswith(f"{gone}:") for p in after)
    world.commit(network(balancer(*addresses)))
    assert spread(world) == after
    world.engine.flush()
    fresh = spread(world)
    world.engine.flush()
    world.commit(network(balancer(*[a for a in addresses if a != gone])))
    moved = [p for p, backend in spread(world).items() if backend != fresh[p]]
    assert shares[f"{gone}:8080"] <= len(moved) <= 3 * shares[f"{gone}:8080"]


def test_a_connection_from_a_port_whose_last_one_is_over_is_a_new_flow() -> None:
    """It does not meet a backend that takes none, nor the one that its client had before."""
    world, connection = World(network(balancer("10.1.2.9"))), f"tcp 10.1.1.2:4000 > {VIP}:80"
    world.at(WEB, f"{connection} syn")
    world.underlay("tcp 10.1.2.9:8080 > 10.1.1.2:4000 syn ack")
    drained = Backend(address=ip_address("10.1.2.9"), drain=True)
    world.commit(network(balancer(drained, "10.1.2.10")))
    assert seen(world.at(WEB, f"{connection} ack"))[2] == "10.1.2.9:8080"
    assert seen(world.at(WEB, f"{connection} rst ack"))[2] == "10.1.2.9:8080"
    assert seen(world.at(WEB, f"{connection} syn"))[2] == "10.1.2.10:8080"
    assert len(list(world.engine.flows())) == 1


def test_a_draining_backend_keeps_its_flows_and_gets_no_new_ones() -> None:
    pair = ("10.1.2.1", "10.1.2.2")
    world = World(network(balancer(*pair)))
    before = spread(world, 200)
    draining = Backend(address=ip_address(pair[0]), drain=True)
    world.commit(network(balancer(draining, pair[1])))
    assert spread(world, 200) == before
    fresh = {seen(world.at(WEB, f"tcp 10.1.1.2:{p} > {VIP}:80 syn"))[2] for p in range(5000, 5100)}
    assert fresh == {"10.1.2.2:8080"}
    world.commit(network(balancer(draining)))
    outcome = world.at(WEB, f"tcp 10.1.1.2:9999 > {VIP}:80 syn")
    assert outcome.reason is Reason["LB_NO_BACKEND"]


@pytest.mark.parametrize("affinity", ["source_ip", "source_ip_protocol"])
def test_affinity_keeps_a_client_at_one_backend(affinity: str) -> None:
    addresses = [f"10.1.2.{i}" for i in range(1, 21)]
    world = World(network(balancer(*addresses, affinity=affinity)))
    assert len(set(spread(world, 50).values())) == 1
    world.commit(network(balancer(*addresses)))
    world.engine.flush()
    assert len(set(spread(world, 50).values())) > 5


def test_local_only() -> None:
    world = World(network(balancer("10.1.1.3", "10.1.2.1", local_only=True)))
    assert set(spread(world, 50).values()) == {"10.1.1.3:8080"}


# ---- from outside ------------------------------------------------------------------------------


def test_node_port_to_a_local_backend_keeps_the_source() -> None:
    world = World(network(balancer("10.1.1.3", node_port=30080)))
    there = world.host(f"tcp {OUTSIDE}:7 > 198.51.100.1:30080 syn")
    assert seen(there) == ("blue/db", f"{OUTSIDE}:7", "10.1.1.3:8080")
    back = world.at(DB, f"tcp 10.1.1.3:8080 > {OUTSIDE}:7 syn ack")
    assert seen(back) == ("host", "198.51.100.1:30080", f"{OUTSIDE}:7")


def test_node_port_to_a_remote_backend_comes_back_this_way() -> None:
    vip = ip_address("10.1.1.250")
    world = World(network(balancer("10.1.2.9", node_port=30080, source_vip=vip)))
    there = world.host(f"tcp {OUTSIDE}:7 > 198.51.100.1:30080 syn")
    port, source, target = seen(there)
    assert (port, target) == ("underlay", "10.1.2.9:8080") and source.startswith("10.1.1.250:")
    back = world.underlay(f"tcp 10.1.2.9:8080 > {source} syn ack")
    assert seen(back) == ("host", "198.51.100.1:30080", f"{OUTSIDE}:7")


def test_port_mapping_and_its_hairpin() -> None:
    mapped = replace(DB, port_mappings=(PortMapping(protocol="tcp", port=8000, target_port=80),))
    world = World(network(endpoints=(WEB, mapped)))
    there = world.host(f"tcp {OUTSIDE}:7 > 198.51.100.1:8000 syn")
    assert seen(there) == ("blue/db", f"{OUTSIDE}:7", "10.1.1.3:80")
    assert there.rule == "blue/db/map-tcp-8000"
    near = world.at(WEB, "tcp 10.1.1.2:9 > 198.51.100.1:8000 syn")
    assert seen(near) == ("blue/db", "10.1.1.2:9", "10.1.1.3:80")
    own = world.at(DB, "tcp 10.1.1.3:9 > 198.51.100.1:8000 syn")
    assert seen(own)[0] == "blue/db" and seen(own)[1].startswith("10.1.0.1:")


@pytest.mark.conformance("T8")
def test_outbound_nat_never_takes_a_mapped_port() -> None:
    """A client inside cannot capture a service's traffic by its choice of source port."""
    mapped = replace(DB, port_mappings=(PortMapping(protocol="tcp", port=8000),))
    nat = OutboundNat(ports=PortRange(8000, 8001))
    world = World(network(endpoints=(WEB, mapped), outbound_nat=nat))
    outcome = world.at(WEB, f"tcp 10.1.1.2:8000 > {OUTSIDE}:80 syn")
    assert seen(outcome)[1] == "198.51.100.1:8001"
    assert seen(world.host(f"tcp {OUTSIDE}:80 > 198.51.100.1:8000 syn"))[0] == "blue/db"


def test_what_pretends_to_come_from_inside() -> None:
    world = World(network(balancer("10.1.1.3", node_port=30080)))
    for spoofed in ("10.1.1.2", "10.1.2.9", "10.1.9.9", "10.1.0.1"):
        outcome = world.host(f"tcp {spoofed}:7 > 198.51.100.1:30080 syn")
        assert outcome.reason is Reason["GUARD_IP"]


# ---- DSR ---------------------------------------------------------------------------------------


def test_dsr_hands_on_the_vip_and_the_backend_answers_the_client() -> None:
    mux = World(network(balancer("10.1.2.9", dsr=True)))
    there = mux.host(f"tcp {OUTSIDE}:7 > {VIP}:80 syn")
    assert seen(there) == ("underlay", f"{OUTSIDE}:7", f"{VIP}:80")
    near = mux.at(WEB, f"tcp 10.1.1.2:4000 > {VIP}:80 syn")
    assert seen(near) == ("underlay", "10.1.1.2:4000", f"{VIP}:80")
    back = mux.underlay(f"tcp {VIP}:80 > 10.1.1.2:4000 syn ack")
    assert seen(back) == ("blue/web", f"{VIP}:80", "10.1.1.2:4000")


def test_dsr_at_the_backend() -> None:
    """The client lives behind another VTEP than the one the packet comes from, or outside."""
    world = World(network(balancer("10.1.1.3", "10.1.2.9", dsr=True)))
    there = world.underlay(f"tcp 10.1.3.7:5 > {VIP}:80 syn", "192.0.2.2")
    assert seen(there) == ("blue/db", "10.1.3.7:5", "10.1.1.3:8080")
    back = world.at(DB, "tcp 10.1.1.3:8080 > 10.1.3.7:5 syn ack")
    assert seen(back) == ("underlay", f"{VIP}:80", "10.1.3.7:5")
    assert ip_address(back.frame[30:34]) == ip_address("192.0.2.3")
    outside = world.underlay(f"tcp {OUTSIDE}:5 > {VIP}:80 syn", "192.0.2.2")
    assert seen(outside)[0] == "blue/db"
    back = world.at(DB, f"tcp 10.1.1.3:8080 > {OUTSIDE}:5 syn ack")
    assert seen(back) == ("host", f"{VIP}:80", f"{OUTSIDE}:5")
    spoofed = world.underlay(f"tcp 10.1.1.2:5 > {VIP}:80 syn")
    assert spoofed.reason is Reason["SOURCE_NOT_BEHIND_VTEP"]


def test_dsr_answers_come_from_any_vtep_of_the_network() -> None:
    vips = subnet(f"{VIP}/32", "192.0.2.2", dsr=True)
    world = World(network(remote_subnets=(subnet("10.1.2.0/24", "192.0.2.3"), vips)))
    assert seen(world.at(WEB, f"tcp 10.1.1.2:9 > {VIP}:80 syn"))[0] == "underlay"
    answer = f"tcp {VIP}:80 > 10.1.1.2:9 syn ack"
    assert seen(world.underlay(answer, "192.0.2.3"))[0] == "blue/web"
    assert world.underlay(answer, "192.0.2.4").reason is Reason["UNKNOWN_VTEP"]
    outcome = world.underlay("tcp 10.1.2.1:80 > 10.1.1.2:9 syn", "192.0.2.2")
    assert outcome.reason is Reason["SOURCE_NOT_BEHIND_VTEP"]


# ---- NAT modes ---------------------------------------------------------------------------------


def outside_of(world: World, words: str) -> str:
    return seen(world.at(WEB, words))[1]


@pytest.mark.conformance("N1")
def test_mapping_is_endpoint_independent_or_symmetric() -> None:
    flows = [f"udp 10.1.1.2:5000 > 203.0.113.{i}:53" for i in range(1, 6)]
    eim = World(network(outbound_nat=OutboundNat()))
    assert len({outside_of(eim, words) for words in flows}) == 1
    symmetric = World(network(outbound_nat=OutboundNat(mapping="symmetric")))
    assert len({outside_of(symmetric, words) for words in flows}) == 5


@pytest.mark.conformance("N1")
def test_ports_keep_parity_and_class() -> None:
    world = World(network(outbound_nat=OutboundNat(ports=PortRange(512, 65535))))
    for port in (7, 8, 1023, 1024, 5000, 5001, 65535):
        chosen = int(outside_of(world, f"udp 10.1.1.2:{port} > {OUTSIDE}:53").partition(":")[2])
        assert chosen % 2 == port % 2
        assert (chosen < 1024) == (port < 1024)


@pytest.mark.conformance("N1", "N7")
def test_ports_run_out_and_the_sender_is_told() -> None:
    world = World(network(outbound_nat=OutboundNat(ports=PortRange(2000, 2009))))
    taken = {outside_of(world, f"udp 10.1.1.2:{p} > {OUTSIDE}:53") for p in range(10)}
    assert len(taken) == 10
    outcome = world.at(WEB, f"udp 10.1.1.2:99 > {OUTSIDE}:53")
    assert outcome.reason is Reason["NAT_EXHAUSTED"]
    told = describe(outcome.frame)
    assert (told["type"], told["code"]) == (3, 13)
    assert outside_of(world, f"udp 10.1.1.2:3 > {OUTSIDE}:54") in taken


@pytest.mark.conformance("C5")
def test_other_protocols_are_translated_by_address_alone() -> None:
    world = World(network(outbound_nat=OutboundNat()))
    gre = world.at(WEB, f"ip 47 10.1.1.2 > {OUTSIDE} len 8")
    assert gre.port == "host" and describe(gre.frame)["src"] == "198.51.100.1"
    assert gre.frame[34:] == bytes(range(8))
    back = world.host(f"ip 47 {OUTSIDE} > 198.51.100.1 len 8")
    assert (back.port, describe(back.frame)["dst"]) == ("blue/web", "10.1.1.2")
    other = world.at(DB, f"ip 47 10.1.1.3 > {OUTSIDE} len 8")
    assert other.reason is Reason["NAT_EXHAUSTED"]


@pytest.mark.conformance("N1")
def test_filtering_and_hairpin() -> None:
    nat = OutboundNat(filtering="endpoint-independent")
    world = World(network(outbound_nat=nat))
    mine = outside_of(world, f"udp 10.1.1.2:5000 > {OUTSIDE}:53")
    stranger = world.host(f"udp 203.0.113.77:9 > {mine}")
    assert seen(stranger) == ("blue/web", "203.0.113.77:9", "10.1.1.2:5000")
    hairpin = world.at(DB, f"udp 10.1.1.3:6000 > {mine}")
    port, source, target = seen(hairpin)
    assert (port, target) == ("blue/web", "10.1.1.2:5000") and source.startswith("198.51.100.1:")
    back = world.at(WEB, f"udp 10.1.1.2:5000 > {source}")
    assert seen(back) == ("blue/db", mine, "10.1.1.3:6000")
    closed = World(network(outbound_nat=OutboundNat()))
    mine = outside_of(closed, f"udp 10.1.1.2:5000 > {OUTSIDE}:53")
    assert closed.host(f"udp 203.0.113.77:9 > {mine}").reason is Reason["NAT_NO_BINDING"]
    assert closed.at(DB, f"udp 10.1.1.3:6000 > {mine}").reason is Reason["NAT_NO_BINDING"]


@pytest.mark.conformance("N3")
def test_hairpinned_errors() -> None:
    """RFC 5508 REQ-7: who was reached through the NAT complains to who came through it; both see
    the other's outside address only, and the quote is of what was sent."""
    nat = OutboundNat(filtering="endpoint-independent")
    world = World(network(outbound_nat=nat))
    mine = outside_of(world, f"udp 10.1.1.2:5000 > {OUTSIDE}:53")
    there = world.at(DB, f"udp 10.1.1.3:6000 > {mine} len 40")
    complaint = error_about(there.frame)
    assert complaint is not None
    told = world.engine.process_one(complaint, "blue/web")
    assert told.port == "blue/db"
    outer = describe(told.frame)
    assert (outer["src"], outer["dst"]) == (mine.partition(":")[0], "10.1.1.3")
    quote = told.frame[42:]
    assert quote[12:20] == ip_address("10.1.1.3").packed + ip_address(outer["src"]).packed
    assert quote[20:24] == struct.pack("!HH", 6000, int(mine.partition(":")[2]))
    assert checksum(told.frame[34:]) == checksum(quote[:20]) == 0


@pytest.mark.conformance("N1", "T8")
def test_an_open_port_is_its_owners_alone() -> None:
    """Another endpoint with the same outside address opens nobody's ports but its own."""
    open_db = replace(DB, outbound_nat=OutboundNat(filtering="endpoint-independent"))
    world = World(network(endpoints=(WEB, open_db), outbound_nat=OutboundNat()))
    closed = outside_of(world, f"udp 10.1.1.2:5000 > {OUTSIDE}:53")
    opened = seen(world.at(DB, f"udp 10.1.1.3:5000 > {OUTSIDE}:53"))[1]
    assert seen(world.host(f"udp 203.0.113.77:9 > {opened}"))[0] == "blue/db"
    outcome = world.host(f"udp 203.0.113.77:9 > {closed}")
    assert outcome.reason is Reason["NAT_NO_BINDING"]


def test_a_packet_to_the_port_it_is_just_given_finds_nobody() -> None:
    """As its trace says, which binds nothing."""
    nat = OutboundNat(ports=PortRange(5000, 5000), filtering="endpoint-independent")
    world = World(network(outbound_nat=nat))
    outcome = world.at(WEB, "udp 10.1.1.2:6000 > 198.51.100.1:5000")
    assert outcome.reason is Reason["NAT_NO_BINDING"]
    assert world.engine.stats().totals["bindings"] == 0


def test_who_speaks_to_its_own_outside_port_has_a_flow_of_one_direction() -> None:
    """Both ways have the same flow id; the flow stays in the table."""
    nat = OutboundNat(ports=PortRange(5000, 5000), filtering="endpoint-independent")
    world = World(network(outbound_nat=nat))
    late = 1000 * 10**9
    world.at(WEB, f"udp 10.1.1.2:4000 > {OUTSIDE}:53", now=late)
    for _ in range(3):
        own = world.at(WEB, "udp 10.1.1.2:4000 > 198.51.100.1:5000", now=late)
        assert seen(own) == ("blue/web", "198.51.100.1:5000", "10.1.1.2:4000")
        totals = world.engine.stats().totals
        assert (totals["flows"], totals["misses"]) == (2, 2)
    world.engine.flush()
    assert world.engine.stats().totals["bindings"] == 0


def test_a_trace_foretells_that_an_idle_flow_takes_its_binding_along() -> None:
    nat = OutboundNat(ports=PortRange(5000, 5000), filtering="endpoint-independent")
    world = World(network(outbound_nat=nat))
    world.at(WEB, f"udp 10.1.1.2:4000 > {OUTSIDE}:53")
    port = world.node.host_port
    answer = build(
        parse(f"udp {OUTSIDE}:53 > 198.51.100.1:5000"), host_mac(port.peer), host_mac(port.address)
    )
    late = 301 * 10**9
    for _ in range(2):
        assert world.engine.trace(answer, "host", now=late).reason is Reason["NAT_NO_BINDING"]
    assert world.engine.trace(answer, "host", now=0).verdict is Verdict.FORWARD
    assert world.engine.process_one(answer, "host", now=late).reason is Reason["NAT_NO_BINDING"]


def test_a_backend_behind_ones_own_outside_address() -> None:
    """Shown from outside by NAT, so it needs no other source, and one binding is all it takes."""
    nat = OutboundNat(ports=PortRange(5000, 5001), filtering="endpoint-independent")
    behind = balancer(Backend(address=ip_address("198.51.100.1"), port=5000))
    world = World(network(behind, outbound_nat=nat))
    assert outside_of(world, f"tcp 10.1.1.2:4000 > {OUTSIDE}:80 syn") == "198.51.100.1:5000"
    there = world.at(WEB, f"tcp 10.1.1.2:4001 > {VIP}:80 syn")
    assert seen(there) == ("blue/web", "198.51.100.1:5001", "10.1.1.2:4000")
    assert world.engine.stats().totals["bindings"] == 2


def test_a_lower_quota_counts_what_is_held() -> None:
    """However many idle bindings there are to give way."""
    world = World(network(outbound_nat=OutboundNat()))
    for port, seconds in ((3, 0), (1, 200), (2, 200)):
        world.at(WEB, f"udp 10.1.1.2:{port} > {OUTSIDE}:53", now=seconds * 10**9)
    world.commit(network(outbound_nat=OutboundNat(max_ports=2)))
    outcome = world.at(WEB, f"udp 10.1.1.2:3 > {OUTSIDE}:53", now=301 * 10**9)
    assert outcome.reason is Reason["NAT_QUOTA"]


def test_a_flow_that_comes_to_nothing_keeps_no_binding() -> None:
    world = World(network(outbound_nat=OutboundNat()), max_flows=4)
    for port in range(50):
        outcome = world.at(WEB, f"udp 10.1.1.2:{port + 1} > {OUTSIDE}:80")
        if outcome.verdict is Verdict.FORWARD:  # answered, so that it gives way to nobody
            world.host(f"udp {OUTSIDE}:80 > {seen(outcome)[1]}")
    totals = world.engine.stats().totals
    assert (totals["flows"], totals["bindings"]) == (4, 4)


def test_a_tcp_binding_outlives_its_last_flow_shortly() -> None:
    world = World(network(outbound_nat=OutboundNat()))
    world.at(WEB, f"tcp 10.1.1.2:5 > {OUTSIDE}:80 syn")
    second = 10**9
    world.engine.expire(now=500 * second)
    world.engine.expire(now=1000 * second)
    assert world.engine.stats().totals["bindings"] == 0


# ---- host routes, routing domains --------------------------------------------------------------


def test_host_route_both_ways() -> None:
    world = World(network(host_route=True))
    there = world.host("tcp 198.51.100.2:7 > 10.1.1.3:22 syn")
    assert seen(there) == ("blue/db", "198.51.100.2:7", "10.1.1.3:22")
    back = world.at(DB, "tcp 10.1.1.3:22 > 198.51.100.2:7 syn ack")
    assert seen(back) == ("host", "10.1.1.3:22", "198.51.100.2:7")
    fresh = world.at(WEB, "udp 10.1.1.2:9 > 198.51.100.2:53")
    assert seen(fresh) == ("host", "10.1.1.2:9", "198.51.100.2:53")
    far = world.host("udp 198.51.100.2:9 > 10.1.2.9:53")
    assert seen(far) == ("underlay", "198.51.100.2:9", "10.1.2.9:53")
    assert seen(world.underlay("udp 10.1.2.9:53 > 198.51.100.2:9"))[0] == "host"
    other = world.host(f"tcp {OUTSIDE}:7 > 10.1.1.3:22 syn")
    assert other.reason is Reason["NO_ROUTE"]
    closed = World(network())
    assert closed.host("udp 198.51.100.2:9 > 10.1.1.3:53").reason is Reason["NO_ROUTE"]


def test_subnets_behind_the_host() -> None:
    """As containers on its bridge: met by endpoints and remote subnets, and by nobody as another's
    address."""
    subnets = ip_network("10.1.9.0/24"), ip_network("10.1.1.0/29")
    world = World(network(host_route=True, host_subnets=subnets))
    far = world.host("udp 10.1.9.5:9 > 10.1.2.9:53")
    assert seen(far) == ("underlay", "10.1.9.5:9", "10.1.2.9:53")
    fresh = world.underlay("udp 10.1.2.9:1 > 10.1.9.77:53")
    assert seen(fresh) == ("host", "10.1.2.9:1", "10.1.9.77:53")
    near = world.at(WEB, "udp 10.1.1.2:9 > 10.1.1.6:53")
    assert seen(near)[0] == "host"
    assert seen(world.host("udp 10.1.9.5:9 > 10.1.1.3:53"))[0] == "blue/db"
    for taken in ("10.1.1.2", "10.1.2.9", "10.1.4.4"):
        spoofed = world.host(f"udp {taken}:9 > 10.1.2.9:54")
        assert spoofed.reason in (Reason["GUARD_IP"], Reason["NO_ROUTE"]), taken
    elsewhere = world.underlay("udp 10.1.9.5:9 > 10.1.9.6:54")
    assert elsewhere.reason is Reason["SOURCE_NOT_BEHIND_VTEP"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"host_route": False}, "the host is not routed to"),
        ({"host_subnets": (ip_network("10.2.0.0/24"),)}, "lies outside"),
        ({"host_subnets": (ip_network("10.1.2.0/24"),)}, "10.1.2.0/24 is the address of a local"),
        ({"host_subnets": (ip_network("10.1.0.0/24"), ip_network("10.1.0.0/25"))}, "overlaps"),
        ({"prefixes": (ip_network("fd00::/64"),), "endpoints": (),
          "host_subnets": (ip_network("fd00::/80"),)}, "IP version of the host port"),
    ],
)  # fmt: skip
def test_bad_subnets_behind_the_host(fields: dict[str, Any], what: str) -> None:
    good = {"host_route": True, "host_subnets": (ip_network("10.1.9.0/24"),)}
    with pytest.raises(DocumentError, match=what):
        World(network(**good | fields))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"host_route": False}, r"direct_subnets: the host is not routed to \(host_route: true\)"),
        ({"prefix": "10.2.0.0/24"}, "lies outside"),
        ({"prefix": "10.1.0.0/16"}, "10.1.0.0/16 is the whole network"),
        ({"prefix": "10.1.2.0/24"}, "10.1.2.0/24 is the address of a local direct subnet"),
        ({"prefix": "10.1.1.2/32"}, "10.1.1.2/32 is the address of a local endpoint"),
        (
            {
                "prefix": "10.1.9.9/32",
                "load_balancers": (
                    LoadBalancer(
                        name="lb", protocol="tcp", port=80, vips=(ip_address("10.1.9.9"),)
                    ),
                ),
            },
            "10.1.9.9/32 is the address of a local VIP",
        ),
        ({"via": "192.0.2.1"}, "192.0.2.1 is this node's own underlay address"),
        ({"via": "fd00::9"}, "fd00::9 is not of the IP version"),
        ({"routing_domain": "shop"}, "a network of a routing domain has none"),
        ({"prefix": "10.1.1.0/24"}, "the endpoint 10.1.1.2/32 lies in it"),
        ({"prefix": "10.1.2.0/23"}, "the remote subnet 10.1.2.0/24 lies in it"),
        ({"host_subnets": (ip_network("10.1.9.128/25"),)}, "the host subnet 10.1.9.128/25 lies in"),
        ({"mtu": 1451, "remote_subnets": ()}, None),
        ({"mtu": 1451}, "mtu 1451 does not fit"),
    ],
)
def test_bad_direct_subnets(fields: dict[str, Any], what: str | None) -> None:
    prefix, via = fields.pop("prefix", "10.1.9.0/24"), fields.pop("via", "192.0.2.9")
    subnet = DirectSubnet(prefix=ip_network(prefix), provider_address=ip_address(via))
    made = network(**{"host_route": True, "direct_subnets": (subnet,)} | fields)
    with pytest.raises(DocumentError, match=what) if what else nullcontext():
        World(made)


def test_direct_subnets_are_reached_by_the_host() -> None:
    """And no VTEP is: neither is a packet handed on to one, nor one that came from one."""
    subnet = DirectSubnet(
        prefix=ip_network("10.1.9.0/24"), provider_address=ip_address("192.0.2.9")
    )
    world = World(network(host_route=True, direct_subnets=(subnet,)))
    there = world.at(WEB, "udp 10.1.1.2:9 > 10.1.9.5:53")
    assert seen(there)[0] == "host" and seen(there)[1] == "10.1.1.2:9", "with its own address"
    assert seen(world.host("udp 10.1.9.5:9 > 10.1.1.3:53"))[0] == "blue/db"
    assert world.host("udp 10.1.9.5:9 > 10.1.2.9:53").reason is Reason["NO_ROUTE"]
    assert world.host("udp 198.51.100.2:9 > 10.1.9.5:53").reason is Reason["NO_ROUTE"]
    through = world.underlay("udp 10.1.2.9:9 > 10.1.9.5:53")
    assert through.reason is Reason["NOT_LOCAL"]
    spoofed = world.underlay("udp 10.1.9.5:9 > 10.1.1.2:54")
    assert spoofed.reason is Reason["SOURCE_NOT_BEHIND_VTEP"]


def test_the_host_is_no_neighbour() -> None:
    """A frame to its MAC address would leave with the router passed by."""
    world = World(network(host_route=True))
    packet = parse("udp 10.1.1.2:9 > 198.51.100.2:53")
    frame = build(packet, endpoint_mac(WEB), host_mac(ip_address("198.51.100.2")))
    outcome = world.engine.process_one(frame, "blue/web", now=0)
    assert outcome.reason is Reason["NOT_OUR_MAC"]


def test_a_domain_shares_its_changes() -> None:
    """A flow to a remote subnet of another network has that one's size and router's MAC."""
    blue = network(routing_domain="shop", mtu=1400)
    red = network(
        name="red",
        vni=Vni(5000),
        prefixes=(ip_network("10.2.0.0/16"),),
        remote_subnets=(subnet("10.2.2.0/24", "192.0.2.9"),),
        endpoints=(),
        routing_domain="shop",
        mtu=1400,
    )
    world = World(blue, red)
    words = "udp 10.1.1.2:7 > 10.2.2.9:80 len 1350 df"
    assert seen(world.at(WEB, words))[0] == "underlay"
    world.commit(blue, replace(red, mtu=1300))
    assert world.at(WEB, words).reason is Reason["TOO_BIG"]


def test_networks_of_one_domain_route_into_each_other() -> None:
    app = Endpoint(name="app", addresses=(ip_address("10.2.1.2"),))
    blue = network(routing_domain="shop")
    red = network(
        name="red",
        vni=Vni(5000),
        prefixes=(ip_network("10.2.0.0/16"),),
        remote_subnets=(subnet("10.2.2.0/24", "192.0.2.9"),),
        endpoints=(app,),
        routing_domain="shop",
    )
    world = World(blue, red)
    there = world.at(WEB, "tcp 10.1.1.2:7 > 10.2.1.2:80 syn")
    assert seen(there) == ("red/app", "10.1.1.2:7", "10.2.1.2:80")
    assert there.frame[6:12] == world.router("red").packed
    back = world.at(app, "tcp 10.2.1.2:80 > 10.1.1.2:7 syn ack", "red")
    assert seen(back)[0] == "blue/web"
    far = world.at(WEB, "tcp 10.1.1.2:7 > 10.2.2.9:80 syn")
    assert seen(far)[0] == "underlay"
    assert int.from_bytes(far.frame[46:49]) == 5000
    answer = world.underlay("tcp 10.2.2.9:80 > 10.1.1.2:7 syn ack", "192.0.2.9", 5000)
    assert seen(answer)[0] == "blue/web"
    assert world.engine.stats().totals["local"] == 2
    alone = World(replace(blue, routing_domain=None), replace(red, routing_domain=None))
    outcome = alone.at(WEB, "tcp 10.1.1.2:7 > 10.2.1.2:80 syn")
    assert outcome.reason is Reason["NO_ROUTE"]


# ---- documents ---------------------------------------------------------------------------------

WRONG = """\
version: 1
node:
  name: a
  underlay: {address: 192.0.2.1}
  networks:
    - name: blue
      vni: 1
      prefixes: [10.1.0.0/16]
      host_route: true
      routing_domain: x
      endpoints:
        - {name: web, addresses: [10.1.1.2], port_mappings: [{protocol: tcp, port: 0}]}
      load_balancers:
        - {name: shop, protocol: tcp, port: 80, vips: [10.96.0.1, 10.1.1.2],
           backends: [10.1.1.2, 10.1.1.2, "2001:db8::1"]}
        - {name: shop, protocol: tcp, port: 80, vips: [10.96.0.1], node_port: 70000}
        - {name: none, protocol: sctp, port: 80}
    - name: red
      vni: 2
      prefixes: [10.1.4.0/24]
      routing_domain: x
"""
FAULTS = [  # line, the path's end, what is said
    (9, "host_route", "no host port"),
    (12, "port_mappings[0].port", "0 is not a port"),
    (12, "port_mappings[0]", "no host port"),
    (14, "vips[1]", "10.1.1.2 is the address of an endpoint"),
    (15, "backends[1]", "10.1.1.2 is taken"),
    (15, "backends[2]", "another IP version"),
    (16, "load_balancers[1]", "shop is taken"),
    (16, "vips[0]", "tcp 10.96.0.1:80 is taken"),
    (16, "node_port", "70000 is not a port"),
    (17, "protocol", "'sctp' is not one of"),
    (20, "prefixes[0]", "overlaps 10.1.0.0/16 of networks[0]"),
]


def test_all_faults_of_services_at_once() -> None:
    with pytest.raises(DocumentError) as caught:
        loads(WRONG, "node.yaml")
    told = str(caught.value).splitlines()
    for line, where, what in FAULTS:
        assert any(
            t.startswith(f"node.yaml:{line} ") and f"{where}:" in t and what in t for t in told
        ), (line, where, what)


def red(**fields) -> Network:
    app = Endpoint(name="app", addresses=(ip_address("10.2.1.2"),))
    base = {"name": "red", "vni": Vni(5000), "prefixes": (ip_network("10.2.0.0/16"),)}
    return Network(**base | {"endpoints": (app,), "routing_domain": "shop"} | fields)


def far(prefix: str) -> dict[str, tuple[RemoteSubnet, ...]]:
    return {"remote_subnets": (subnet(prefix, "192.0.2.9"),)}


TWICE = {  # two ways to one address, which no route table holds
    "a VIP": node(network(balancer("10.1.1.3"), **far(f"{VIP}/32"))),
    "a VIP of the domain": node(
        network(balancer("10.1.1.3"), routing_domain="shop"), red(**far(f"{VIP}/32"))
    ),
    "an endpoint of the domain": node(network(routing_domain="shop"), red(**far("10.1.1.2/32"))),
    "a remote subnet of the domain": node(
        network(routing_domain="shop"), red(**far("10.1.2.0/24"))
    ),
    "the host": node(network(host_route=True, **far("198.51.100.2/32"))),
    "a VIP and port": replace(
        node(
            network(balancer("10.1.1.3"), routing_domain="shop"),
            red(load_balancers=(balancer("10.2.1.2"),)),
        ),
        host_port=None,
    ),
}


@pytest.mark.parametrize("what", TWICE)
def test_what_leads_two_ways_is_told_before_the_engine_refuses_it(what: str) -> None:
    with Engine() as engine, pytest.raises(DocumentError):
        engine.commit(TWICE[what])


# ---- C refuses what is wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"address": "10.1.2.1", "port": 0},
        {"address": "10.1.2.1", "port": 1, "flags": 2},
    ],
)
def test_impossible_backends(change) -> None:
    from dataplane._engine import ffi

    error = ffi.new("struct dp_error *")
    row = {"port": change["port"], "flags": change.get("flags", 0)}
    backends = ffi.new("struct dp_backend[]", [row])
    assert lib.dp_balance_create(backends, 1, error) == ffi.NULL and error.status < 0
    assert lib.dp_balance_create(ffi.NULL, 1, error) == ffi.NULL and error.status < 0
    twice = ffi.new("struct dp_backend[]", [{"port": 1}, {"port": 1}])
    assert lib.dp_balance_create(twice, 2, error) == ffi.NULL and error.status < 0
    assert lib.dp_balance_create(backends, 5001, error) == ffi.NULL and error.status < 0
