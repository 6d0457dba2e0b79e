"""The flannel front door: its documents, and its lease and watch against a real etcd."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

import pytest
from msgspec.structs import replace

from dataplane.address import Mac
from dataplane.engine import Engine
from dataplane.errors import DocumentError
from dataplane.flannel import peers, subnet_env
from dataplane.flannel.access import Access, EtcdError
from dataplane.flannel.documents import Subnet, read_config, read_lease
from dataplane.flannel.etcd import Client, CompactedError, Item
from dataplane.flannel.keeper import Identity, Keeper
from dataplane.flannel.link import can_route
from dataplane.flannel.translate import mtu, network, remote_subnets
from dataplane.model import Endpoint, HostPort, Node, Tap, Underlay
from tests.etcd_server import WHY_NOT, Etcd

ROOT = Path(__file__).resolve().parent.parent
MAC, OTHER_MAC = Mac("2a:ea:29:2f:f8:6a"), Mac("7e:5b:fa:eb:b1:26")
ME = Identity(IPv4Address("10.99.0.1"), None, MAC)
CONFIG_TEXT = (
    b'{"Network":"10.5.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":42,"Port":4789}}'
)
CONFIG = read_config(CONFIG_TEXT, "config")
V4_VALUE = (
    b'{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":42,"VtepMAC":"2a:ea:29:2f:f8:6a"}}'
)
DUAL_VALUE = (
    b'{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1","BackendType":"vxlan",'
    b'"BackendData":{"VNI":43,"VtepMAC":"3a:b5:9c:f3:a6:05"},'
    b'"BackendV6Data":{"VNI":43,"VtepMAC":"2e:70:3d:4b:fa:14"}}'
)
OLD_VALUE = (
    b'{"PublicIP":"10.99.0.2","BackendType":"vxlan","BackendData":{"VtepMAC":"CE:06:1f:88:cc:42"}}'
)
DUAL_KEY = "10.5.34.0-24&2001:cafe:42:48::-64"


# ---- documents -------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [("10.5.19.0-24", V4_VALUE), (DUAL_KEY, DUAL_VALUE)])
def test_recorded_leases_come_back_byte_by_byte(key: str, value: bytes) -> None:
    lease = read_lease(key, value)
    assert (lease.text(), lease.subnet.key()) == (value, key)


def test_old_and_unready_leases_are_read() -> None:
    old = read_lease("10.5.57.0-24", OLD_VALUE)
    assert (old.mac, old.vni) == ("ce:06:1f:88:cc:42", 0)
    for mac in (b'""', b"null", b'"00:00:00:00:00:00"'):
        value = OLD_VALUE.replace(b'"CE:06:1f:88:cc:42"', mac)
        assert read_lease("10.5.57.0-24", value).mac is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("10.5.57.0", OLD_VALUE),
        ("10.5.57.1-24", OLD_VALUE),
        ("10.5.57.0-24&zz::-64", OLD_VALUE),
        ("10.5.57.0-24", b"[]"),
        ("10.5.57.0-24", OLD_VALUE.replace(b'{"VtepMAC"', b'{"VNI":1e999,"VtepMAC"')),
        ("10.5.57.0-24", b"\xff"),
        ("10.5.57.0-24", b"[" * 100_000),
        ("10.5.57.0-24", OLD_VALUE.replace(b"10.99.0.2", b"10.99.0.300")),
        ("10.5.57.0-24", OLD_VALUE.replace(b"CE:", b"xx:")),
        ("10.5.57.0-24", OLD_VALUE.replace(b'"vxlan"', b'"host-gw"')),
        ("10.5.57.0-24", OLD_VALUE.replace(b'{"VtepMAC":"CE:06:1f:88:cc:42"}', b"7")),
    ],
)
def test_bad_leases_are_named(key: str, value: bytes) -> None:
    with pytest.raises(DocumentError) as caught:
        read_lease(key, value)
    assert caught.value.faults[0].file == key


def test_config_is_read_as_go_does_with_flannels_defaults() -> None:
    text = b'{"network":"10.0.0.0/8","BACKEND":{"type":"vxlan"},"SubnetMin":null}'
    config = read_config(text, "config")
    assert (config.v4.length, config.vni, config.port, config.v6) == (24, 1, 8472, None)
    assert ip_address(config.v4.first) == ip_address("10.0.1.0")
    assert ip_address(config.v4.last) == ip_address("10.255.255.0")
    small = read_config(b'{"Network":"10.5.0.0/28","Backend":{"Type":"vxlan"}}', "config")
    assert small.v4.length == 30
    six = (
        b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56",'
        b'"Backend":{"Type":"vxlan","VNI":16777215}}'
    )
    dual = read_config(six, "config")
    assert dual.v6 is not None
    assert ip_address(dual.v6.first) == ip_address("2001:cafe:42:1::")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("$", b"{"),
        ("$.Network", b'{"Backend":{"Type":"vxlan"}}'),
        ("$.Backend.Type", b'{"Network":"10.5.0.0/16"}'),
        ("$.Backend.GBP", b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","GBP":true}}'),
        ("$.Backend.VNI", b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}'),
        ("$.Network", b'{"Network":"10.5.0.0/29","Backend":{"Type":"vxlan"}}'),
        ("$.SubnetLen", b'{"Network":"10.5.0.0/24","SubnetLen":24,"Backend":{"Type":"vxlan"}}'),
        (
            "$.SubnetMin",
            b'{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.7","Backend":{"Type":"vxlan"}}',
        ),
        (
            "$.IPv6Network",
            b'{"Network":"10.5.0.0/16","EnableIPv6":true,"Backend":{"Type":"vxlan"}}',
        ),
    ],
)
def test_bad_configs_are_named(path: str, text: bytes) -> None:
    with pytest.raises(DocumentError) as caught:
        read_config(text, "config")
    assert (caught.value.faults[0].file, caught.value.faults[0].path) == ("config", path)


def test_subnet_env_is_flannels(tmp_path: Path) -> None:
    """As recorded; the previous subnet is read back of it."""
    text = (
        b'{"Network":"10.6.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56",'
        b'"Backend":{"Type":"vxlan"}}'
    )
    config, place = read_config(text, "config"), tmp_path / "flannel" / "subnet.env"
    subnet = Subnet(IPv4Network("10.6.2.0/24"), IPv6Network("2001:cafe:42:48::/64"))
    underlay = Underlay(address=IPv4Address("10.99.0.1"), mtu=1500)
    subnet_env.write(place, subnet_env.text(config, subnet, mtu(config, underlay)))
    assert place.read_text() == (
        "FLANNEL_NETWORK=10.6.0.0/16\nFLANNEL_SUBNET=10.6.2.1/24\n"
        "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:48::1/64\n"
        "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
    )
    assert place.stat().st_mode & 0o777 == 0o644
    assert subnet_env.previous(place) == subnet
    assert subnet_env.previous(tmp_path / "none") is None


# ---- peers and translation -------------------------------------------------------------------


def test_a_peer_that_comes_again_in_time_never_leaves() -> None:
    known = peers.Peers()
    known.put("10.5.57.0-24", OLD_VALUE, 2)
    known.delete("10.5.57.0-24", now=10.0)
    assert not known.expire(10.0 + peers.GRACE / 2)
    known.put("10.5.57.0-24", V4_VALUE, 4)
    assert known.next_change() is None
    assert not known.expire(100.0)
    known.reset({}, now=100.0)
    assert known.expire(100.0 + peers.GRACE)
    assert not list(known.in_order())


def test_a_peer_without_a_vtep_mac_keeps_the_one_it_had() -> None:
    """Of the same node, and in the order in which nodes told theirs."""
    known, unready = peers.Peers(), OLD_VALUE.replace(b"CE:06:1f:88:cc:42", b"")
    known.put("10.5.57.0-24", OLD_VALUE, 2)
    known.put("10.5.58.0-24", OLD_VALUE.replace(b"CE:06", b"7e:06"), 3)
    known.put("10.5.57.0-24", unready, 4)
    assert [str(lease.mac)[:5] for lease in known.in_order()] == ["7e:06", "ce:06"]
    known.put("10.5.57.0-24", unready.replace(b"0.2", b"0.9"), 5)
    assert next(lease.mac for lease in known.in_order()) is None
    known.put("10.5.57.0-24", OLD_VALUE.replace(b"CE:06", b"6e:06"), 6)
    assert [str(lease.mac)[:5] for lease in known.in_order()] == ["6e:06", "7e:06"]
    known.put(DUAL_KEY, DUAL_VALUE, 7)
    known.put(DUAL_KEY, DUAL_VALUE.replace(b"2e:70:3d:4b:fa:14", b""), 8)
    assert next(iter(known.in_order())) == read_lease(DUAL_KEY, DUAL_VALUE)


def test_what_a_peer_writes_refuses_nobody_else() -> None:
    """Each bad lease is named, and the good one is followed; the latest VtepMAC of a node holds."""
    own = read_lease("10.5.19.0-24", V4_VALUE)
    leases = [
        read_lease("10.5.57.0-24", OLD_VALUE),
        read_lease("10.5.58.0-24", OLD_VALUE.replace(b"CE:06", b"7e:06")),
        read_lease("10.6.1.0-24", OLD_VALUE),
        read_lease("10.5.0.0-16", OLD_VALUE),
        read_lease("10.5.60.0-24", V4_VALUE),
        read_lease("10.5.61.0-24", OLD_VALUE.replace(b"10.99.0.2", b"224.0.0.1")),
        read_lease("10.5.62.0-24", OLD_VALUE.replace(b"0.2", b"0.9").replace(b"CE:", b"01:")),
        read_lease(DUAL_KEY, DUAL_VALUE.replace(b"10.99.0.1", b"10.99.0.3")),
        read_lease("10.5.63.0-24", OLD_VALUE.replace(b"CE:06:1f:88:cc:42", b"")),
        read_lease("10.5.0.1-32", OLD_VALUE),
    ]  # fmt: skip
    underlay = Underlay(address=IPv4Address("10.99.0.1"))
    found, refused = remote_subnets(CONFIG, own, leases, underlay)
    assert {str(r.prefix): str(r.dr_mac) for r in found} == {
        "10.5.34.0/24": "3a:b5:9c:f3:a6:05",
        "10.5.57.0/24": "ce:06:1f:88:cc:42",
        "10.5.58.0/24": "ce:06:1f:88:cc:42",
    }
    bad = {"10.6.1.0-24", "10.5.0.0-16", "10.5.60.0-24", "10.5.61.0-24", "10.5.62.0-24", DUAL_KEY}
    assert refused.keys() == bad | {"10.5.0.1-32"}
    made = network(CONFIG, own, found, (), (), underlay, None)
    assert (made.vni, made.mtu, made.dr_mac) == (42, 1450, MAC)
    assert made.gateways == (ip_address("10.5.19.1"),)
    host = HostPort(
        address=IPv4Address("169.254.1.1"), peer=IPv4Address("169.254.1.2"), tap=Tap(name="f0")
    )
    behind = network(CONFIG, own, found, (), (), underlay, host)
    assert (behind.host_subnets, behind.host_route) == ((IPv4Network("10.5.19.0/24"),), True)
    assert behind.gateways == (ip_address("10.5.0.1"),), "10.5.19.1 is the bridge's"
    with Engine() as engine:
        engine.plan(Node(name="a", underlay=underlay, host_port=host, networks=(behind,)))
    first = own._replace(subnet=read_lease("10.5.0.0-24", V4_VALUE).subnet)
    assert network(CONFIG, first, found, (), (), underlay, host).gateways == (
        ip_address("10.5.0.254"),
    )


def test_the_hosts_route_does_not_come_and_go_with_peers() -> None:
    """DirectRouting gives endpoints one, if the host port can be used; nobody has to be near."""
    own = read_lease("10.5.19.0-24", V4_VALUE)
    underlay = Underlay(address=IPv4Address("10.99.0.1"))
    direct, web = CONFIG._replace(direct=True), (Endpoint(name="web"),)
    usable = HostPort(
        address=IPv4Address("169.254.1.1"), peer=IPv4Address("169.254.1.2"), tap=Tap(name="f0")
    )
    six = HostPort(address=IPv6Address("fe80::1"), peer=IPv6Address("fe80::2"), tap=Tap(name="f0"))
    elsewhere = replace(usable, tap=Tap(name="f0", netns="other"))
    for host in (usable, six, elsewhere, None):
        assert can_route(direct, host) == (host is usable)
        made = network(direct, own, (), (), web, underlay, host)
        assert made.host_route == (host is usable)
    assert not network(CONFIG, own, (), (), web, underlay, usable).host_route
    assert can_route(direct._replace(v6=direct.v4._replace(network=IPv6Network("fd00::/48"))), six)


# ---- a real etcd -----------------------------------------------------------------------------

real = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path).start()
    yield server
    server.kill()


@real
def test_a_lease_is_acquired_kept_and_renewed(etcd: Etcd) -> None:
    client = Client([etcd.url])
    mine = Keeper(client, "/net", ME)
    previous = Subnet(IPv4Network("10.5.77.0/24"))
    held = mine.acquire(CONFIG, previous)
    assert held.lease.subnet == previous
    (item,) = client.list("/net/subnets")[1]
    assert (item.key, item.value) == ("/net/subnets/10.5.77.0-24", held.lease.text())
    (grant,) = etcd.call("lease/leases", {})["leases"]
    told = etcd.call("lease/timetolive", {"ID": grant["ID"], "keys": True})
    assert told["grantedTTL"] == "86400" and len(told["keys"]) == 1
    assert mine.acquire(CONFIG, None, held) == held, "what stands is not written again"
    again = mine.acquire(CONFIG, None)
    assert again.lease == held.lease and again.revision > held.revision, "by the public IP"
    assert mine.renew(again).revision > again.revision
    with pytest.raises(EtcdError):
        mine.renew(again)


@real
def test_others_keep_theirs_and_a_lease_that_does_not_fit_goes(etcd: Etcd) -> None:
    client = Client(["http://127.0.0.1:1", etcd.url])
    etcd.put("/net/subnets/10.5.77.0-24", OLD_VALUE)
    etcd.put("/net/subnets/10.6.1.0-24", V4_VALUE)
    etcd.put("/net/subnets/10.5.1.0-24", b"unreadable")
    text = CONFIG_TEXT.replace(b'"SubnetLen"', b'"SubnetMax":"10.5.2.0","SubnetLen"')
    config = read_config(text, "config")
    held = Keeper(client, "/net", ME).acquire(config, Subnet(IPv4Network("10.5.77.0/24")))
    assert held.lease.subnet.key() == "10.5.2.0-24", "the only one that is free"
    keys = {item.key.rpartition("/")[2] for item in client.list("/net/subnets")[1]}
    assert keys == {"10.5.77.0-24", "10.5.1.0-24", "10.5.2.0-24"}
    third = Identity(IPv4Address("10.99.0.3"), None, OTHER_MAC)
    with pytest.raises(EtcdError, match=r"no subnet of 10\.5\.0\.0/16 is free"):
        Keeper(client, "/net", third).acquire(config, None)


@real
def test_a_lease_that_was_spoiled_while_nobody_looked_is_written_again(etcd: Etcd) -> None:
    """As one is that is watched; but where the node has a sound one, that is its lease."""
    client, previous = Client([etcd.url]), Subnet(IPv4Network("10.5.77.0/24"))
    mine = Keeper(client, "/net", ME)
    mine.acquire(CONFIG, previous)
    etcd.put("/net/subnets/10.5.77.0-24", b"{")
    again = mine.acquire(CONFIG, previous)
    assert [item.value for item in client.list("/net/subnets")[1]] == [again.lease.text()]
    etcd.put("/net/subnets/10.5.3.0-24", b"{")
    other = mine.acquire(CONFIG, Subnet(IPv4Network("10.5.3.0/24")))
    assert other.lease == again.lease


@real
def test_dual_stack_leases_have_a_dual_key(etcd: Etcd) -> None:
    text = CONFIG_TEXT.replace(
        b'"SubnetLen":24', b'"EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56"'
    )
    me = ME._replace(public_ip6=IPv6Address("fd99::1"))
    held = Keeper(Client([etcd.url]), "/net", me).acquire(read_config(text, "config"), None)
    (item,) = Client([etcd.url]).list("/net/subnets")[1]
    lease = read_lease(item.key.rpartition("/")[2], item.value)
    assert lease == held.lease
    assert lease.public_ip6 == ip_address("fd99::1") and lease.mac6 == MAC


@real
def test_a_watch_tells_all_and_says_when_it_cannot(etcd: Etcd) -> None:
    client = Client([etcd.url])
    revision, _ = client.list("/net/subnets")
    with client.watch("/net/subnets", revision + 1) as watch:
        etcd.put("/net/subnets/a", b"1")
        etcd.delete("/net/subnets/a")
        etcd.put("/net/subnets/b", b"2")
        events: list[Item] = []
        deadline = time.monotonic() + 10
        while len(events) < 3 and time.monotonic() < deadline:
            events += watch.next(1)
        told = [(e.key[-1], e.value, e.deleted) for e in events]
        assert told == [("a", b"1", False), ("a", b"", True), ("b", b"2", False)]
    etcd.compact()
    with client.watch("/net/subnets", revision + 1) as watch, pytest.raises(CompactedError):
        watch.next(10)
    with client.watch("/net/subnets", events[-1].revision + 1) as watch:
        etcd.kill()
        with pytest.raises(EtcdError):
            watch.next(10)
    with pytest.raises(EtcdError):
        client.list("/net/subnets")


@pytest.mark.parametrize(
    ("status", "words", "why"),
    [
        (401, b'{"error":"x","code":16,"message":"invalid auth token"}', "invalid auth token"),
        (503, b"no etcd behind me", "no etcd behind me"),
        (503, b"", "Service Unavailable"),
    ],
)
def test_a_watch_that_is_refused_says_why(status: int, words: bytes, why: str) -> None:
    """By etcd, or by what stands before it."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(words)))
            self.end_headers()
            self.wfile.write(words)

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        client = Client([f"http://127.0.0.1:{server.server_port}"])
        told = pytest.raises(EtcdError, match=f"^the watch is refused: {why}$")
        with client.watch("/net/subnets", 1) as watch, told:
            watch.next(10)


@real
def test_certificates_and_a_user(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """etcd knows only who has both; a token that it has forgotten is replaced."""
    etcd = Etcd(tmp_path, certificate=certificate).start()
    try:
        etcd.call("auth/user/add", {"name": "root", "password": "secret"})
        etcd.call("auth/role/add", {"name": "root"})
        etcd.call("auth/user/grant", {"user": "root", "role": "root"})
        etcd.call("auth/enable", {})
        pem, key = map(str, certificate)
        whole = Access(pem, pem, key, "root", "secret")
        for less, why in (
            (whole._replace(username=""), "permission denied"),
            (whole._replace(password="wrong"), "authentication failed"),
            (whole._replace(cert=None, key=None), "https://"),
            (whole._replace(ca=None), "certificate verify failed"),
        ):
            with pytest.raises(EtcdError, match=why):
                Client([etcd.url], less).list("/net/subnets")
        client = Client([etcd.url], whole)
        held = Keeper(client, "/net", ME).acquire(CONFIG, None)
        with client.watch("/net/subnets", held.revision + 1) as watch:
            Keeper(client, "/net", ME).renew(held)
            assert len(watch.next(10)) == 1
        etcd.kill()
        etcd.start()
        assert len(client.list("/net/subnets")[1]) == 1
    finally:
        etcd.kill()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"ca": "/nowhere/ca.pem"}, "/nowhere/ca.pem: No such file"),
        ({"ca": __file__}, "not in PEM"),
        ({"key": __file__}, "a key without its certificate"),
    ],
)
def test_bad_certificates_are_named(fields: dict[str, str], what: str) -> None:
    with pytest.raises(EtcdError, match=what):
        Client(["https://127.0.0.1:2379"], Access(**fields))


DYING = """
import os, signal, sys
from tests.test_flannel import CONFIG, ME, Client, Keeper
url, step = sys.argv[1], int(sys.argv[2])
class Dying(Client):
    calls = 0
    def _call(self, path, body):
        self.calls += 1
        if self.calls * 2 - 1 == step: os.kill(os.getpid(), signal.SIGKILL)
        answer = super()._call(path, body)
        if self.calls * 2 == step: os.kill(os.getpid(), signal.SIGKILL)
        return answer
Keeper(Dying([url]), "/net", ME).acquire(CONFIG, None)
"""


@real
def test_killed_between_any_two_steps_it_converges_to_one_lease(etcd: Etcd) -> None:
    """The steps: list, grant, put; before and after each. Then again, with a lease."""
    client, ends = Client([etcd.url]), []
    for has_lease in (False, True):
        for step in range(1, 8):
            if not has_lease:
                etcd.delete("/net/subnets")
            dead = subprocess.run([sys.executable, "-c", DYING, etcd.url, str(step)], cwd=ROOT)
            ends.append(dead.returncode)
            held = Keeper(client, "/net", ME).acquire(CONFIG, None)
            (item,) = client.list("/net/subnets")[1]
            assert (item.value, item.revision) == (held.lease.text(), held.revision)
    assert ends == 2 * [*6 * [-signal.SIGKILL], 0]


@real
def test_nodes_that_begin_together_have_a_subnet_each(etcd: Etcd) -> None:
    """All want the same one."""
    client = Client([etcd.url])
    wanted = Subnet(IPv4Network("10.5.9.0/24"))

    class Slow(Client):
        """Another node acquires between the listing and the put."""

        done = False

        def grant(self, ttl: int) -> str:
            if not self.done:
                self.done = True
                other = Identity(IPv4Address("10.99.0.2"), None, OTHER_MAC)
                Keeper(client, "/net", other).acquire(CONFIG, wanted)
            return super().grant(ttl)

    held = Keeper(Slow([etcd.url]), "/net", ME).acquire(CONFIG, wanted)
    assert held.lease.subnet != wanted
    assert len(client.list("/net/subnets")[1]) == 2
    assert len(etcd.call("lease/leases", {})["leases"]) == 2, "the grant in vain is revoked"
