"""Path MTUs of the underlay: who is believed, how long, what follows (RFC 1191, RFC 8201)."""

from ipaddress import ip_address

import pytest
from msgspec.structs import replace

from dataplane.api.mtus import mtus
from dataplane.model import Timers
from dataplane.packet import describe
from dataplane.reasons import Reason
from tests import blue
from tests.blue import ETH, forwarded, inner_of, web

TOO_BIG = Reason["TOO_BIG"]
VTEP, VTEP6 = ip_address(blue.VTEP), ip_address(blue.VTEP6)
SECOND = 10**9


@pytest.fixture
def engine():
    with blue.engine() as made:
        yield made


def carried(engine, words: str = "udp 10.1.0.2:7 > 10.2.0.9:53", now: int = 0) -> int:
    """The largest inner packet that passes with DF."""
    fits = [n for n in range(20, 1500) if _passes(engine, f"{words} len {n} df", now)]
    return fits[-1] + 28


def _passes(engine, words: str, now: int) -> bool:
    return engine.process_one(web(words), "web", now=now).port == "underlay"


@pytest.mark.conformance("R8")
@pytest.mark.parametrize("told", [577, 1000, 1400])
def test_the_inner_sender_is_told_what_the_path_carries(engine, told: int) -> None:
    assert engine.learn_path(VTEP, told)
    frame = blue.told(engine.process_one(web(f"{OUT} len 1422 df"), "web"), TOO_BIG)
    assert int.from_bytes(frame[ETH + 26 : ETH + 28]) == told - 50
    assert carried(engine) == told - 50
    assert engine.stats().totals["paths"] == 1


OUT = "udp 10.1.0.2:7 > 10.2.0.9:53"


@pytest.mark.conformance("R8")
def test_only_that_way_is_concerned(engine) -> None:
    assert engine.learn_path(VTEP, 1300)
    assert carried(engine, "udp 10.1.0.2:7 > 10.3.0.9:53") == 1430
    assert carried(engine, "udp 10.1.0.2:7 > 10.6.0.9:53") == 1430
    assert engine.learn_path(VTEP6, 1300)
    assert carried(engine, "udp 10.1.0.2:7 > 10.6.0.9:53") == 1230


@pytest.mark.conformance("R8", "T9")
@pytest.mark.parametrize("mtu", [0, 1, 67, 1500, 9000, 65535])
def test_what_cannot_be_is_not_believed(engine, mtu: int) -> None:
    assert not engine.learn_path(VTEP, mtu)
    for stranger in ("192.0.2.9", "10.2.0.9", "2001:db8::9"):
        assert not engine.learn_path(ip_address(stranger), 1300)
    assert not engine.learn_path(VTEP, 1300, vni=7)
    assert engine.learn_path(VTEP, 1300, vni=blue.VNI)


@pytest.mark.conformance("R8", "T9")
def test_a_lie_stops_at_the_floor_and_with_time() -> None:
    """576 bytes of IPv4, 1280 of IPv6; inner IPv6 is sent in 1280 bytes whatever is said."""
    with blue.engine(replace(blue.node(), timers=Timers(path_mtu=60))) as engine:
        assert engine.learn_path(VTEP, 68, now=0) and engine.learn_path(VTEP6, 68, now=0)
        assert carried(engine) == 576 - 50
        assert carried(engine, "udp 10.1.0.2:7 > 10.6.0.9:53") == 1280 - 70
        inner = "udp [fd00:1::2]:7 > [fd00:2::9]:53"
        assert _passes(engine, f"{inner} len {1280 - 48}", 0)
        assert not _passes(engine, f"{inner} len {1281 - 48}", 0)
        assert carried(engine, now=60 * SECOND - 1) == 526
        assert carried(engine, now=60 * SECOND) == 1430
        engine.expire(now=60 * SECOND)
        assert engine.stats().totals["paths"] == 0


@pytest.mark.conformance("R8")
def test_it_falls_and_does_not_rise_until_it_is_forgotten(engine) -> None:
    assert engine.learn_path(VTEP, 1300) and not engine.learn_path(VTEP, 1300)
    assert not engine.learn_path(VTEP, 1400) and carried(engine) == 1250
    assert engine.learn_path(VTEP, 1200) and carried(engine) == 1150


@pytest.mark.conformance("R8")
def test_who_asks_is_told_for_how_long_it_holds(engine) -> None:
    assert engine.learned_path(VTEP) is None
    assert engine.learn_path(VTEP, 1300, now=0)
    assert engine.learned_path(VTEP, now=10**9) == (1300, 599.0)
    assert engine.learned_path(VTEP, now=600 * 10**9) is None
    assert engine.learned_path(VTEP6) is None


def test_what_is_learned_limits_the_packets_of_its_peer_only(engine) -> None:
    engine.learn_path(VTEP, 1300)
    told = {item["name"]: item for item in mtus(engine)}
    one = told.pop(f"blue/{VTEP}")
    assert (one["learned"], one["largest"], one["forgotten_in"]) == (1300, 1250, 600.0)
    assert all(item["learned"] is item["forgotten_in"] is None for item in told.values())
    assert told


@pytest.mark.conformance("R8", "N8")
def test_segments_fit_both_ways(engine) -> None:
    """What either side announces is lowered: the other one will send no more."""
    assert engine.learn_path(VTEP, 1300)
    out = engine.process_one(web("tcp 10.1.0.2:7 > 10.2.0.9:80 syn mss 1460"), "web")
    assert describe(inner_of(forwarded(out, "underlay")))["mss"] == 1250 - 40
    back = blue.peer("tcp 10.2.0.9:80 > 10.1.0.2:7 syn ack mss 1460")
    arrived = forwarded(engine.process_one(back, "underlay"), "blue/web")
    assert describe(arrived)["mss"] == 1250 - 40


@pytest.mark.conformance("R8", "R6")
def test_packets_without_df_are_cut_to_it(engine) -> None:
    assert engine.learn_path(VTEP, 1300)
    first = engine.process_one(web(f"{OUT} len 1400"), "web")
    pieces = [inner_of(forwarded(o, "underlay")) for o in (first, *first.more)]
    assert [len(p) - ETH for p in pieces] == [1244, 204]


@pytest.mark.conformance("R8")
def test_a_commit_forgets_nothing(engine) -> None:
    engine.learn_path(VTEP, 1300)
    engine.commit(blue.node(acls=(blue.rule("rest", "out", "allow"),)))
    assert carried(engine) == 1250


def test_more_ways_than_there_is_room_for() -> None:
    """The oldest of a set gives way, the newest is known."""
    remotes = [blue.remote(f"10.9.{n}.0/24", f"198.51.{n}.1") for n in range(200)]
    remotes += [blue.remote(f"10.10.{n}.0/24", f"198.52.{n}.1") for n in range(200)]
    with blue.engine(blue.node(remote_subnets=tuple(remotes))) as engine:
        for each in remotes:
            assert engine.learn_path(each.provider_address, 1300)
            got = engine.process_one(web(_to(each) + " len 1300 df"), "web")
            assert got.reason is TOO_BIG
        assert engine.stats().totals["paths"] > 380


def _to(remote) -> str:
    return f"udp 10.1.0.2:7 > {remote.prefix[9]}:53"


def test_hostile_arguments(engine) -> None:
    for mtu, vni in ((-1, None), (1 << 16, None), (1300, -1), (1300, 1 << 40)):
        with pytest.raises(ValueError, match="out of range"):
            engine.learn_path(VTEP, mtu, vni=vni)
    with pytest.raises(ValueError, match=r"192\.0\.2"):
        engine.learn_path("192.0.2", 1300)
    assert engine.learn_path(blue.VTEP, 1300)
