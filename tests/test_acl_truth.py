"""What tiers of ACL rules decide, read off a table; and how a sender is told that it was rejected.

The table is that of DASH (and so of VFP): t is terminating, nt is not; the network's group is
walked first, then the endpoint's.
"""

from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any

import pytest

from dataplane.address import Mac, Vni
from dataplane.engine import Engine, Outcome
from dataplane.model import Acl, Endpoint, Network, Node, RemoteSubnet, Underlay
from dataplane.packet import build, describe, parse
from dataplane.reasons import Reason, Verdict
from tests.reference.checksum import checksum, pseudo_header

DR, WEB, DB, PEER = (Mac(f"02:00:00:00:00:0{n}") for n in range(1, 5))
NO_RULE = ""

TABLE = {  # first tier, second tier: verdict, and the tier whose rule decided (0: none)
    ("allow nt", "allow nt"): ("allow", 2),
    ("block t", "allow t"): ("block", 1),
    ("block t", "allow nt"): ("block", 1),
    ("allow t", "block t"): ("allow", 1),
    ("allow t", "block nt"): ("allow", 1),
    ("allow nt", "block t"): ("block", 2),
    ("allow nt", "block nt"): ("block", 2),
    ("block nt", "block nt"): ("block", 2),
    ("block nt", "block t"): ("block", 2),
    ("block nt", "allow nt"): ("allow", 2),
    ("block nt", "allow t"): ("allow", 2),
    ("allow nt", "allow t"): ("allow", 2),
    ("allow t", "allow t"): ("allow", 1),
    ("allow t", "allow nt"): ("allow", 1),
    ("block t", "block t"): ("block", 1),
    ("block t", "block nt"): ("block", 1),
    # where the second tier has nothing to say, the first one's soft word stands
    ("allow nt", NO_RULE): ("allow", 1),
    ("allow t", NO_RULE): ("allow", 1),
    ("block nt", NO_RULE): ("block", 1),
    ("block t", NO_RULE): ("block", 1),
    ("allow nt", "pass t"): ("allow", 1),
    ("block nt", "pass nt"): ("block", 1),
    # pass leaves its tier without a word, terminating or not
    ("pass t", "allow t"): ("allow", 2),
    ("pass t", "block nt"): ("block", 2),
    ("pass nt", "allow nt"): ("allow", 2),
    ("pass nt", "block t"): ("block", 2),
    ("pass t", "pass t"): ("default", 0),
    ("pass t", NO_RULE): ("default", 0),
    (NO_RULE, "pass nt"): ("default", 0),
    (NO_RULE, NO_RULE): ("default", 0),
    (NO_RULE, "allow nt"): ("allow", 2),
    (NO_RULE, "block t"): ("block", 2),
    ("reject nt", "allow t"): ("allow", 2),
    ("reject t", "allow t"): ("block", 1),
    ("allow nt", "reject nt"): ("block", 2),
}


def tier(word: str, direction: Any, stateful: bool, name: str) -> tuple[Acl, ...]:
    """The rule, and one after it that would say the opposite: it must never be asked."""
    if not word:
        return ()
    action, _, flag = word.partition(" ")
    kind: dict[str, Any] = {"direction": direction, "stateful": stateful}
    other = "block" if action == "allow" else "allow"
    return (
        Acl(name=name, action=action, priority=10, terminating=flag == "t", **kind),
        Acl(name=f"{name}-later", action=other, priority=20, **kind),
    )


def node(network: tuple[Acl, ...], endpoint: tuple[Acl, ...], default: Any = None) -> Node:
    web = Endpoint(
        name="web",
        addresses=(ip_address("10.0.1.2"), ip_address("fd00:1::2")),
        mac=WEB,
        acls=endpoint,
        default_in=default,
        default_out=default,
    )
    db = Endpoint(
        name="db",
        addresses=(ip_address("10.0.1.3"), ip_address("fd00:1::3")),
        mac=DB,
        default_in="allow",
        default_out="allow",
    )
    remotes = tuple(
        RemoteSubnet(prefix=ip_network(p), provider_address=ip_address("192.0.2.2"), dr_mac=PEER)
        for p in ("10.2.0.0/16", "fd00:2::/64")
    )
    blue = Network(
        name="blue",
        vni=Vni(100),
        prefixes=(ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")),
        dr_mac=DR,
        acls=network,
        remote_subnets=remotes,
        endpoints=(web, db),
    )
    return Node(name="a", underlay=Underlay(address=ip_address("192.0.2.1")), networks=(blue,))


def decided(engine: Engine, direction: str) -> Outcome:
    """Out: web to the remote subnet. In: db to web, past db's own rules, which are stateful."""
    if direction == "out":
        frame = build(parse("udp 10.0.1.2:1000 > 10.2.0.9:2000"), WEB, DR)
        return engine.process_one(frame, "web")
    return engine.process_one(build(parse("udp 10.0.1.3:1000 > 10.0.1.2:2000"), DB, DR), "db")


@pytest.mark.parametrize("stateful", [True, False], ids=["stateful", "stateless"])
@pytest.mark.parametrize("default", ["allow", "block"])
@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize(("first", "second"), TABLE)
def test_truth_table(first: str, second: str, direction: Any, default: Any, stateful: bool) -> None:
    rules = (tier(first, direction, stateful, "one"), tier(second, direction, stateful, "two"))
    verdict, tier_number = TABLE[first, second]
    verdict = default if verdict == "default" else verdict
    with Engine() as engine:
        engine.commit(node(*rules, default=default))
        got = decided(engine, direction)
    names = {0: None, 1: "blue/one", 2: "blue/web/two"}
    assert (got.verdict is Verdict.FORWARD) == (verdict == "allow")
    assert got.rule == names[tier_number]


@pytest.mark.parametrize(
    ("first", "second"), [*product(["allow t", "allow nt", "pass t", NO_RULE], repeat=2)]
)
@pytest.mark.parametrize("stateful", [True, False], ids=["stateful", "stateless"])
def test_answers(first: str, second: str, stateful: bool) -> None:
    """A stateful decision lets answers in; of a stateless one they need a rule of their own. The
    default has state."""
    rules = (tier(first, "out", stateful, "one"), tier(second, "out", stateful, "two"))
    nobody_in = Acl(name="none", direction="in", action="block")
    with Engine() as engine:
        policy = node(rules[0], (*rules[1], nobody_in), default="allow")
        engine.commit(policy)
        sent = build(parse("udp 10.0.1.2:1000 > 10.0.1.3:2000"), WEB, DR)
        assert engine.process_one(sent, "web").verdict is Verdict.FORWARD
        answer = build(parse("udp 10.0.1.3:2000 > 10.0.1.2:1000"), DB, DR)
        back = engine.process_one(answer, "db")
    by_default = (first, second) in product(["pass t", NO_RULE], repeat=2)
    assert (back.verdict is Verdict.FORWARD) == (stateful or by_default)
    if not (stateful or by_default):
        assert (back.reason, back.rule) == (Reason.ACL_DENY, "blue/web/none")


# ---- reject ------------------------------------------------------------------------------------

ENDS = {4: ("10.0.1.2", "10.2.0.9"), 6: ("fd00:1::2", "fd00:2::9")}
FIN, SYN, RST, ACK = 1, 2, 4, 16
SEQ, ACKED = 0xFFFFFFFE, 0x01020304

REJECT = tuple(
    Acl(name=f"no-{direction}", direction=direction, action="reject")  # type: ignore[arg-type]
    for direction in ("in", "out")
)


def segment(flags: int, data: bytes = b"", version: int = 4) -> bytes:
    """From web, with right checksums."""
    src, dst = (ip_address(a).packed for a in ENDS[version])
    ports = (40000).to_bytes(2) + (80).to_bytes(2)
    numbers = SEQ.to_bytes(4) + ACKED.to_bytes(4)
    body = ports + numbers + bytes([6 << 4, flags, 1, 0]) + bytes(4) + b"\2\4\5\xb4" + data
    check = checksum(pseudo_header(src, dst, 6, len(body)) + body)
    body = body[:16] + check.to_bytes(2) + body[18:]
    if version == 4:
        head = b"\x45\x03" + (20 + len(body)).to_bytes(2) + b"\1\2\0\0\x07\x06\0\0" + src + dst
        head = head[:10] + checksum(head).to_bytes(2) + head[12:]
    else:
        head = b"\x60\0\0\0" + len(body).to_bytes(2) + b"\6\7" + src + dst
    return DR.packed + WEB.packed + (b"\x08\0" if version == 4 else b"\x86\xdd") + head + body


def rejected(frame: bytes, port: str = "web", acls: tuple[Acl, ...] = REJECT) -> Outcome:
    with Engine() as engine:
        engine.commit(node((), acls))
        got = engine.process_one(frame, port)
        totals = engine.stats().totals
    assert (got.verdict, got.reason) == (Verdict.DROP, Reason.ACL_REJECT)
    assert totals["originated"] == (got.port is not None)
    return got


@pytest.mark.parametrize("version", [4, 6], ids=["ip4", "ip6"])
@pytest.mark.parametrize(
    ("flags", "data", "seq", "ack", "answer"),
    [
        (SYN, b"", 0, SEQ + 1, RST | ACK),
        (SYN, b"fast open", 0, SEQ + 10, RST | ACK),
        (SYN | FIN, b"x", 0, SEQ + 3, RST | ACK),
        (FIN, b"", 0, SEQ + 1, RST | ACK),
        (0, b"", 0, SEQ, RST | ACK),
        (ACK, b"data", ACKED, 0, RST),
        (SYN | ACK, b"", ACKED, 0, RST),
        (FIN | ACK, b"", ACKED, 0, RST),
    ],
)
def test_a_rejected_segment_is_reset(
    version: int, flags: int, data: bytes, seq: int, ack: int, answer: int
) -> None:
    """By RFC 9293 section 3.10.7.1, as if nothing listened at the destination."""
    got = rejected(segment(flags, data, version))
    head = 34 if version == 4 else 54
    src, dst = (ip_address(a).packed for a in ENDS[version][::-1])
    tcp = got.frame[head:]
    assert got.port == "blue/web"
    assert got.frame[:12] == WEB.packed + DR.packed
    assert got.frame[head - 2 * len(src) : head] == src + dst
    assert len(tcp) == 20 and tcp[:4] == (80).to_bytes(2) + (40000).to_bytes(2)
    assert tcp[4:12] == (seq % (1 << 32)).to_bytes(4) + (ack % (1 << 32)).to_bytes(4)
    assert tcp[12:14] == bytes([5 << 4, answer])
    assert checksum(pseudo_header(src, dst, 6, 20) + tcp) == 0
    if version == 4:
        assert checksum(got.frame[14:34]) == 0
        assert got.frame[14:24] == b"\x45\0\0\x28\0\0\x40\0\x40\x06"
    else:
        assert got.frame[14:22] == b"\x60\0\0\0\0\x14\x06\x40"


@pytest.mark.parametrize("version", [4, 6], ids=["ip4", "ip6"])
@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN])
def test_a_reset_is_never_answered(version: int, flags: int) -> None:
    assert rejected(segment(flags, version=version)).port is None


def test_a_damaged_segment_is_not_answered() -> None:
    frame = segment(SYN, b"data")
    assert rejected(frame[:-1] + b"\xff").port is None


def test_a_neighbour_seems_to_answer_itself() -> None:
    """Frames between neighbours are switched: the reset has the neighbour's MAC."""
    frame = build(parse("tcp 10.0.1.2:40000 > 10.0.1.3:80 syn"), WEB, DB)
    got = rejected(frame)
    assert got.frame[:12] == WEB.packed + DB.packed
    assert describe(got.frame)["src"] == "10.0.1.3"


def test_the_receivers_rejection_reaches_the_sender() -> None:
    frame = build(parse("tcp 10.0.1.3:40000 > 10.0.1.2:80 syn"), DB, DR)
    got = rejected(frame, "db")
    assert (got.port, got.rule) == ("blue/db", "blue/web/no-in")
    assert describe(got.frame)["src"] == "10.0.1.2"


@pytest.mark.conformance("R3", "R4")
@pytest.mark.parametrize(
    ("packet", "source", "kind"),
    [
        ("udp 10.0.1.2:1 > 10.2.0.9:2", "10.0.1.1", (3, 13)),
        ("udp fd00:1::2:1 > fd00:2::9:2", "fd00:1::1", (1, 1)),
        ("ip 47 10.0.1.2 > 10.2.0.9", "10.0.1.1", (3, 13)),
        ("icmp 10.0.1.2 > 10.2.0.9 echo id 1", "10.0.1.1", (3, 13)),
    ],
)
def test_what_is_no_tcp_is_told_by_icmp(packet: str, source: str, kind: tuple[int, int]) -> None:
    text = packet.replace("fd00:1::2:1", "[fd00:1::2]:1").replace("fd00:2::9:2", "[fd00:2::9]:2")
    got = rejected(build(parse(text), WEB, DR))
    at = 34 if "." in source else 54
    assert tuple(got.frame[at : at + 2]) == kind
    assert describe(got.frame)["src"] == source


def test_a_first_fragment_of_tcp_is_told_by_icmp() -> None:
    """How much the whole segment acknowledges is not known."""
    got = rejected(build(parse("tcp 10.0.1.2:40000 > 10.2.0.9:80 syn mf len 12"), WEB, DR))
    assert got.frame[23] == 1
