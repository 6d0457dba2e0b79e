"""Datagrams in fragments: whatever the order, they go the way of the first one, within bounds.

RFC 791 section 3.2, RFC 8200 section 4.5, RFC 1858, RFC 3128, RFC 5722, RFC 6946; RFC 4787 REQ-14.
"""

import random
from dataclasses import dataclass
from itertools import permutations

import pytest
from msgspec.structs import replace

from dataplane.address import Vni
from dataplane.batch import Batch
from dataplane.engine import Engine, Outcome
from dataplane.model import OutboundNat, Tap, Timers
from dataplane.packet import describe
from dataplane.reasons import Reason, Verdict
from dataplane.stats import adds_up
from tests import blue
from tests.blue import ETH, carried, dropped, forwarded, inner_of, web
from tests.reference.build import part
from tests.reference.checksum import fold, pseudo_header
from tests.reference.checksum import words as sum_words

SECOND = 10**9
WORDS = {
    "udp": "udp 10.1.0.2:7 > 10.2.0.9:53 len 92",
    "tcp": "tcp 10.1.0.2:7 > 10.2.0.9:53 syn len 80",
    "ping": "icmp 10.1.0.2 > 10.2.0.9 echo id 5 len 92",
    "sctp": "ip 132 10.1.0.2 > 10.2.0.9 len 100",
    "udp6": "udp [fd00:1::2]:7 > [fd00:2::9]:53 len 92",
    "ping6": "icmp6 fd00:1::2 > fd00:2::9 echo id 5 len 92",
}
BOUNDS = ((0, 24), (24, 56), (56, 72), (72, 100))


def parts(words: str, ident: int = 77, bounds=BOUNDS) -> list[bytes]:
    return [part(web(words), begin, end, ident) for begin, end in bounds]


def all_of(engine: Engine, frames: list[bytes], port: str = "web") -> list[Outcome]:
    """What each frame and what came out with it became, in that order."""
    outcomes = [engine.process_one(frame, port) for frame in frames]
    return [each for o in outcomes for each in (o, *o.more)]


def left_of(outcomes: list[Outcome], port: str = "underlay") -> list[bytes]:
    return [forwarded(o, port) for o in outcomes if o.verdict is not Verdict.HELD]


@pytest.fixture
def engine():
    with blue.engine() as made:
        yield made


# ---- order -------------------------------------------------------------------------------------


@pytest.mark.conformance("R10", "V5", "N1")
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_in_any_order_each_leaves_once_on_the_flows_way(words: str) -> None:
    """The same bytes as in order, with one outer source port, and nothing is left behind."""
    for order in permutations(range(len(BOUNDS))):
        with blue.engine(key=blue.KEY) as engine:
            (whole,) = left_of(all_of(engine, [web(words)]))
            pieces = parts(words)
            out = left_of(all_of(engine, [pieces[i] for i in order]))
            assert sorted(inner_of(f)[ETH + 20 :] for f in out) == sorted(
                piece[ETH + 20 :] for piece in hop_later(pieces)
            )
            assert {f[34:36] for f in out} == {whole[34:36]}
            totals = engine.stats().totals
            assert (totals["held"], totals["flows"], totals["dropped"]) == (0, 1, 0)
            assert adds_up(totals)


def hop_later(pieces: list[bytes]) -> list[bytes]:
    """IPv6 has its hop limit behind the 20 bytes that an IPv4 header is long."""
    return [
        p[: ETH + 7] + bytes([p[ETH + 7] - (p[12:14] == b"\x86\xdd")]) + p[ETH + 8 :]
        for p in pieces
    ]


@pytest.mark.conformance("C4", "N1")
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_through_nat_in_any_order(order: tuple[int, ...]) -> None:
    """Out and back in: addresses of all, ports and checksum of the first one."""
    words = "udp 10.1.0.2:777 > 203.0.113.9:80 len 92"
    bounds = ((0, 24), (24, 56), (56, 100))
    with blue.engine(blue.node(outbound_nat=OutboundNat())) as engine:
        sent = forwarded(engine.process_one(web(words), "web"), "host")
        pieces = parts(words, bounds=bounds)
        out = left_of(all_of(engine, [pieces[i] for i in order]), "host")
        assert {f[ETH + 12 : ETH + 20] for f in out} == {sent[ETH + 12 : ETH + 20]}
        assert b"".join(payload_in_order(out)) == sent[ETH + 20 :]
        port = describe(sent)["sport"]
        back = blue.outside(f"udp 203.0.113.9:80 > {blue.NAT}:{port} len 92")
        answers = [part(back, begin, end, 5) for begin, end in bounds]
        got = left_of(all_of(engine, [answers[i] for i in order], "host"), "blue/web")
        whole = forwarded(engine.process_one(back, "host"), "blue/web")
        assert b"".join(payload_in_order(got)) == whole[ETH + 20 :]


def payload_in_order(frames: list[bytes]) -> list[bytes]:
    return [f[ETH + 20 :] for f in sorted(frames, key=lambda f: int.from_bytes(f[20:22]) & 0x1FFF)]


@pytest.mark.conformance("R10")
def test_a_burst_holds_all_of_it() -> None:
    """In one call of `process`, later ones first: `more` gives them out until there are none."""
    with blue.engine() as engine:
        pieces = parts(WORDS["udp"])
        batch = Batch(2, 2048)
        result = engine.process(Batch(8).load(pieces[::-1], "web"))
        assert result.verdict.tolist() == [Verdict.HELD] * 3 + [Verdict.FORWARD]
        assert engine.stats().totals["held"] == 3
        ports = []
        while len(result := engine.more(batch)):
            ports += [result.port_of(i) for i in range(len(result))]
        assert ports == ["underlay"] * 3 and engine.stats().totals["held"] == 0


def test_slots_that_are_too_small_are_told_of(engine) -> None:
    """And what waits is still there."""
    engine.process(Batch(4, 9000).load([web("udp 10.1.0.2:7 > 10.2.0.9:53 len 3000")], "web"))
    with pytest.raises(ValueError, match="slot of 200 bytes"):
        engine.more(Batch(4, 200))
    assert len(engine.more(Batch(4))) == 2


# ---- policy ------------------------------------------------------------------------------------

ANY = (blue.rule("rest", "out", "allow", priority=2000), blue.rule("rest-in", "in", "allow"))


@pytest.mark.conformance("R10")
@pytest.mark.parametrize("kind", ["udp", "udp6"])
@pytest.mark.parametrize("first", [True, False])
def test_later_fragments_follow_the_rule_that_judged_the_first(kind: str, first: bool) -> None:
    """VPP's test 0021: what has no ports must not slip past the rule that has."""
    deny = blue.rule("no", "out", "block", 53, protocol="udp", priority=1)
    with blue.engine(blue.node(acls=(deny, *ANY))) as engine:
        pieces = parts(WORDS[kind])
        out = all_of(engine, pieces if first else pieces[::-1])
        out = [o for o in out if o.verdict is not Verdict.HELD]
        assert [(dropped(o), o.rule) for o in out] == [("acl_deny", "blue/no")] * 4
        allowed = WORDS[kind].replace(":53", ":54")
        assert len(left_of(all_of(engine, parts(allowed, ident=78)))) == 4


@pytest.mark.conformance("R10")
def test_a_later_fragment_alone_passes_nowhere(engine) -> None:
    """Not even where no rule looks at ports; in time it is dropped under its name."""
    got = engine.process_one(parts(WORDS["udp"])[1], "web", now=0)
    assert (got.verdict, got.port) == (Verdict.HELD, None)
    engine.expire(now=30 * SECOND)
    assert engine.stats().totals["held"] == 1
    engine.expire(now=30 * SECOND + 1)
    stats = engine.stats()
    assert stats.reasons == {Reason["FRAGMENT_TIMEOUT"]: 1} and adds_up(stats.totals)
    assert stats.ports["blue/web"]["dropped"] == 1


def test_the_document_sets_how_long_it_waits() -> None:
    with blue.engine(replace(blue.node(), timers=Timers(fragment=3))) as engine:
        engine.process_one(parts(WORDS["udp"])[1], "web", now=0)
        late = engine.process_one(parts(WORDS["udp"])[0], "web", now=3 * SECOND + 1)
        assert forwarded(late, "underlay") and late.more == ()


def test_rules_that_change_meanwhile_judge_what_waits(engine) -> None:
    """The first one and those that waited for it see the same policy, the new one."""
    first, *later = parts(WORDS["udp"])
    assert {o.verdict for o in all_of(engine, later)} == {Verdict.HELD}
    deny = blue.rule("no", "out", "block", 53, protocol="udp", priority=1)
    engine.commit(blue.node(acls=(deny, *ANY)))
    assert [dropped(o) for o in all_of(engine, [first])] == ["acl_deny"] * 4


def test_a_trace_foretells_and_changes_nothing(engine) -> None:
    first, second, *_ = parts(WORDS["udp"])
    walk = engine.trace(second, "web")
    assert walk.verdict is Verdict.HELD and engine.stats().totals["held"] == 0
    engine.process_one(first, "web")
    walk = engine.trace(second, "web")
    assert (walk.verdict, walk.egress) == (Verdict.FORWARD, "underlay")
    assert engine.process_one(second, "web").verdict is Verdict.FORWARD
    assert str(engine.trace(second, "web").reason) == "fragment_overlap"


def test_flush_drops_what_waits(engine) -> None:
    engine.process_one(parts(WORDS["udp"])[1], "web")
    engine.flush()
    totals = engine.stats().totals
    assert (totals["held"], totals["dropped"]) == (0, 1) and adds_up(totals)


# ---- attacks -----------------------------------------------------------------------------------


@pytest.mark.conformance("R10", "T11")
@pytest.mark.parametrize("words", [WORDS["udp"], WORDS["udp6"]])
@pytest.mark.parametrize("again", [(16, 40), (0, 32), (8, 16), (24, 64)])
def test_an_overlap_ends_the_datagram(engine, words: str, again: tuple[int, int]) -> None:
    """RFC 5722; what repeats a part that was seen is dropped by itself."""
    first, second, third, _ = parts(words)
    assert len(left_of(all_of(engine, [first, second]))) == 2
    inside = again[1] <= 56
    assert dropped(engine.process_one(part(web(words), *again, 77), "web")) == "fragment_overlap"
    got = engine.process_one(third, "web")
    assert got.port == "underlay" if inside else dropped(got) == "fragment_overlap"


@pytest.mark.conformance("T11")
def test_what_waits_ends_with_the_datagram(engine) -> None:
    _, second, third, _ = parts(WORDS["udp"])
    assert {o.verdict for o in all_of(engine, [second, third])} == {Verdict.HELD}
    again = part(web(WORDS["udp"]), 48, 80, 77)
    assert dropped(engine.process_one(again, "web")) == "fragment_overlap"
    stats = engine.stats()
    assert stats.reasons == {Reason["FRAGMENT_OVERLAP"]: 3}
    assert stats.totals["held"] == 0 and adds_up(stats.totals)


@pytest.mark.conformance("R10", "T11")
def test_a_second_end_ends_the_datagram(engine) -> None:
    first, second, _, last = parts(WORDS["udp"])
    assert len(left_of(all_of(engine, [first, last]))) == 2
    short = part(web(WORDS["udp"])[:-44], 24, 56, 77)  # says that it is the last
    assert dropped(engine.process_one(short, "web")) == "fragment_overlap"
    assert dropped(engine.process_one(second, "web")) == "fragment_overlap"


@pytest.mark.conformance("R10", "T11")
@pytest.mark.parametrize("proto", [6, 17, 132])
def test_impossible_fragments(engine, proto: int) -> None:
    """Ping of death; sizes that leave gaps; nothing at all; the header again (RFC 3128)."""
    end = "10.1.0.2 > 10.2.0.9"
    bad = [f"ip {proto} {end} frag 65528 len 9", f"ip {proto} {end} frag 64 len 12 mf"]
    bad += [f"ip {proto} {end} frag 64 len 0", f"ip {proto} {end} frag 64 len 0 mf"]
    bad += [f"ip 6 {end} frag 8 len 40"]
    for words in bad:
        assert dropped(engine.process_one(web(words), "web")) == "bad_fragment"
    assert (
        engine.process_one(web(f"ip {proto} {end} frag 65528 len 7"), "web").reason == Reason.NONE
    )


@pytest.mark.conformance("T3", "T11")
@pytest.mark.parametrize("words", ["ip 17 10.1.0.3 > 10.2.0.9", "ip 17 fd00:1::3 > fd00:2::9"])
def test_nothing_is_kept_for_a_source_that_is_not_the_endpoints(engine, words: str) -> None:
    assert dropped(engine.process_one(web(f"{words} frag 64 len 24"), "web")) == "guard_ip"
    dhcp = web("udp 10.1.0.2:67 > 10.2.0.9:68 mf len 24")
    assert dropped(engine.process_one(dhcp, "web")) == "guard_dhcp"
    assert engine.stats().totals["held"] == 0


@dataclass(frozen=True)
class Bounds:
    datagrams: int = 64
    kept: int = 32


@pytest.mark.conformance("T11", "T6")
def test_one_endpoint_takes_no_more_than_its_quarter() -> None:
    """A spray of ids, then 8,191 tiny pieces: others' fragments still find room."""
    most = Bounds()
    with blue.engine(max_datagrams=most.datagrams, max_kept=most.kept) as engine:
        spray = [f"ip 17 10.1.0.2 > 10.2.0.9 frag 64 len 8 mf ipid {n}" for n in range(1000)]
        told = [engine.process_one(web(words), "web").verdict for words in spray]
        assert told.count(Verdict.HELD) == most.kept // 4
        tiny = [f"ip 17 10.1.0.2 > 10.2.0.8 frag {n * 8} len 8 mf ipid 9" for n in range(1, 8191)]
        for words in tiny:
            assert dropped(engine.process_one(web(words), "web")) == "fragment_room"
        firsts = [f"udp 10.1.0.2:7 > 10.2.0.9:53 len 16 mf ipid {n}" for n in range(2000, 2100)]
        told = [engine.process_one(web(words), "web").verdict for words in firsts]
        assert told.count(Verdict.FORWARD) == (most.datagrams - most.kept) // 4
        other = "udp 10.1.0.3:7 > 10.2.0.9:53 len 92"
        pieces = [part(blue.db(other), begin, end, 1) for begin, end in BOUNDS]
        assert len(left_of(all_of(engine, pieces[::-1], "db"))) == 4
        stats = engine.stats()
        assert stats.totals["held"] == most.kept // 4 and adds_up(stats.totals)
        engine.expire(now=31 * SECOND)
        assert engine.stats().totals["held"] == 0
        assert engine.process_one(web(firsts[-1]), "web", now=31 * SECOND).port == "underlay"


@pytest.mark.conformance("T11")
def test_gaps_are_followed_only_so_far(engine) -> None:
    words = "ip 17 10.1.0.2 > 10.2.0.9 len 8 mf ipid 9 frag"
    told = [str(engine.process_one(web(f"{words} {n * 16}"), "web").reason) for n in range(1, 40)]
    assert told == ["none"] * 16 + ["fragment_room"] * 23


@pytest.mark.conformance("T6")
def test_ten_thousand_datagrams_are_found_at_once(engine) -> None:
    """Each of many that are under way is completed by its own rest, in random order."""
    words = "udp 10.1.0.2:7 > 10.2.0.9:53 len 40"
    whole, order = web(words), list(range(1000))
    for ident in order:
        assert engine.process_one(part(whole, 0, 24, ident), "web").port == "underlay"
    random.Random(1).shuffle(order)
    for ident in order:
        assert engine.process_one(part(whole, 24, 48, ident), "web").port == "underlay"
    assert engine.stats().totals["held"] == 0


@pytest.mark.conformance("T19")
def test_datagrams_of_two_networks_vteps_and_ports_do_not_meet() -> None:
    """The same addresses and id everywhere: nobody's ports are lent to another's fragments."""
    base = blue.node()
    ends = (replace(e, tap=Tap(name=f"r-{e.name}")) for e in base.networks[0].endpoints)
    red = replace(base.networks[0], name="red", vni=Vni(9), endpoints=tuple(ends))
    with blue.engine(replace(base, networks=(*base.networks, red))) as engine:
        inner = blue.mirrored(web("udp 10.1.0.2:7 > 10.2.0.9:53 len 92"))
        first, later = (part(inner, begin, end, 5) for begin, end in ((0, 48), (48, 100)))
        assert engine.process_one(carried(first), "underlay").port == "blue/web"
        for elsewhere in (carried(later, vni=9), carried(later, "192.0.2.3")):
            assert engine.process_one(elsewhere, "underlay").verdict is Verdict.HELD
        assert engine.process_one(carried(later), "underlay").port == "blue/web"


# ---- a router's own ----------------------------------------------------------------------------


@pytest.mark.conformance("R6")
def test_a_fragment_is_cut_again(engine) -> None:
    """Offsets and the more-fragments flag go on from where the large fragment stood."""
    whole = web("udp 10.1.0.2:7 > 10.2.0.9:53 len 5992 ipid 5")
    pieces = [part(whole, 0, 3000, 5), part(whole, 3000, 6000, 5)]
    out = [inner_of(frame) for frame in left_of(all_of(engine, pieces))]
    assert len(out) == 6 and all(len(frame) <= ETH + 1450 for frame in out)
    assert b"".join(payload_in_order(out)) == whole[ETH + 20 :]
    flags = [int.from_bytes(f[20:22]) >> 13 for f in out]
    assert flags == [1, 1, 1, 1, 1, 0]


@pytest.mark.conformance("R6", "C4")
def test_a_partial_checksum_is_made_whole_before_the_cut() -> None:
    words = "udp 10.1.0.2:777 > 203.0.113.9:80 len 3000"
    with blue.engine(blue.node(outbound_nat=OutboundNat())) as engine:
        whole = web(words)
        wanted = left_of(all_of(engine, [whole]), "host")
        pseudo = pseudo_header(whole[26:30], whole[30:34], 17, len(whole) - 34)
        partial = blue.patched(whole, 40, fold(sum(sum_words(pseudo))).to_bytes(2))
        first = engine.process_one(partial, "web", flags=1)
        assert left_of([first, *first.more], "host") == wanted


@pytest.mark.conformance("R6")
@pytest.mark.parametrize("room", [{"max_datagrams": 8}, {"max_kept": 8}], ids=str)
@pytest.mark.parametrize("port", ["web", "underlay"])
def test_a_trace_counts_on_room_that_time_has_made(room: dict[str, int], port: str) -> None:
    """What is overdue stays while it looks, but would be gone."""
    words = web("udp 10.1.0.2:7 > 10.2.0.9:53 len 92")
    if port == "underlay":
        words = blue.mirrored(words)
    for later in (31 * SECOND, 29 * SECOND):
        with blue.engine(**room) as engine:
            told = []
            for ident, now in ((1, 0), (2, 0), (3, 0), (4, later), (5, later), (6, later)):
                piece = part(words, 24, 56, ident)
                frame = carried(piece) if port == "underlay" else piece
                walk = engine.trace(frame, port, now=now)
                got = engine.process_one(frame, port, now=now)
                assert (walk.verdict, walk.reason) == (got.verdict, got.reason)
                told.append(got.verdict)
            held = [Verdict.HELD] * 2 + [Verdict.DROP]
            assert told == (held * 2 if later > 30 * SECOND else held + [Verdict.DROP] * 3)


def test_pieces_that_find_no_room_are_not_sent_by_halves() -> None:
    with blue.engine(max_kept=2) as engine:
        got = engine.process_one(web("udp 10.1.0.2:7 > 10.2.0.9:53 len 5000"), "web")
        assert dropped(got) == "needs_fragmentation"
        totals = engine.stats().totals
        assert (totals["held"], totals["copies"]) == (0, 0) and adds_up(totals)
