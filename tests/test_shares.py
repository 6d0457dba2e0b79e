"""Front doors' shares of a policy: composed with the document's, kept apart, saved together."""

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from msgspec.structs import replace

from dataplane.address import Mac, Vni, parse_prefix
from dataplane.api.resources import listed
from dataplane.daemon import Daemon
from dataplane.errors import DataplaneError, DocumentError, StaleError
from dataplane.model import (
    Acl,
    Backend,
    Endpoint,
    LoadBalancer,
    Network,
    Node,
    RemoteSubnet,
    Underlay,
)
from dataplane.shares import DOCUMENT, Composer, Part, Share, compose, owners
from dataplane.state_dir import Saved, StateDir

BLUE = Network(name="blue", vni=Vni(4096), prefixes=(parse_prefix("10.1.0.0/16"),))
RED = Network(name="red", vni=Vni(70_000), prefixes=(parse_prefix("10.9.0.0/16"),))
NODE = Node(
    name="a", underlay=Underlay(address=ip_address("127.0.0.9"), port=14_789), networks=(BLUE,)
)
WEB = LoadBalancer(
    name="web",
    protocol="tcp",
    port=80,
    vips=(ip_address("10.96.0.1"),),
    backends=(Backend(address=ip_address("10.1.2.2")),),
)
DENY = Acl(name="deny", direction="in", action="block")


def far(number: int) -> RemoteSubnet:
    return RemoteSubnet(
        prefix=parse_prefix(f"10.1.{number}.0/24"),
        provider_address=ip_address(f"127.0.1.{number}"),
        dr_mac=Mac(f"02:aa:00:00:00:{number:02x}"),
    )


def share(*numbers: int) -> Share:
    return Share(parts=(Part(network="blue", remote_subnets=tuple(map(far, numbers))),))


def endpoint(name: str, last: int, *acls: Acl) -> Endpoint:
    return Endpoint(name=name, addresses=(ip_address(f"10.1.1.{last}"),), acls=acls)


def faults(base: Node, **shares: Share) -> str:
    with pytest.raises(DocumentError) as caught:
        compose(base, shares)
    return str(caught.value)


def test_shares_stand_beside_the_documents_own() -> None:
    own = replace(BLUE, remote_subnets=(far(9),))
    shares = {
        "flannel": share(1, 2),
        "kubernetes": Share(parts=(Part(network="blue", load_balancers=(WEB,)),)),
        "hns": Share(networks=(RED,)),
    }
    made = compose(replace(NODE, networks=(own,)), shares)
    blue = replace(own, remote_subnets=(far(9), far(1), far(2)), load_balancers=(WEB,))
    assert made == replace(NODE, networks=(blue, RED))
    assert owners(shares) == {
        ("remote_subnets", "blue/10.1.1.0/24"): "flannel",
        ("remote_subnets", "blue/10.1.2.0/24"): "flannel",
        ("load_balancers", "blue/web"): "kubernetes",
        ("networks", "red"): "hns",
    }


def test_nobody_else_changes_nothing() -> None:
    assert compose(NODE, {}) is NODE
    assert compose(NODE, {"hns": Share(kept="what it likes")}) is NODE


def test_acls_go_to_whose_ever_endpoint_as_long_as_it_is_there() -> None:
    mine = endpoint("mine", 2, Acl(name="own", direction="in", action="allow"))
    base = replace(NODE, networks=(replace(BLUE, endpoints=(mine,)),))
    cni = Share(parts=(Part(network="blue", endpoints=(endpoint("pod", 3),)),))
    acls = {"mine": (DENY,), "pod": (DENY,), "gone": (DENY,)}
    kube = Share(parts=(Part(network="blue", endpoint_acls=acls),))
    (blue,) = compose(base, {"cni": cni, "kubernetes": kube}).networks
    assert [(e.name, [acl.name for acl in e.acls]) for e in blue.endpoints] == [
        ("mine", ["own", "deny"]),
        ("pod", ["deny"]),
    ]


def test_what_nobody_changed_stays_the_same_object() -> None:
    composer = Composer()
    base = replace(NODE, networks=(replace(BLUE, endpoints=(endpoint("pod", 3),)), RED))
    kube = Share(parts=(Part(network="blue", endpoint_acls={"pod": (DENY,)}),))
    first = composer.compose(base, {"kubernetes": kube})
    again = composer.compose(base, {"kubernetes": kube, "hns": Share(kept="x")})
    more = composer.compose(base, {"kubernetes": kube, "flannel": share(1)})
    assert all(a is b for a, b in zip(first.networks, again.networks, strict=True))
    assert more.networks[0].endpoints[0] is first.networks[0].endpoints[0]
    assert more.networks[1] is RED


def test_two_origins_cannot_have_one_object() -> None:
    told = faults(replace(NODE, networks=(replace(BLUE, remote_subnets=(far(1),)),)), hns=share(1))
    assert "remote subnet 10.1.1.0/24 of network blue is document's already" in told
    told = faults(NODE, hns=share(1), flannel=share(2, 1))
    assert told.startswith("flannel") and "is hns's already" in told
    assert "network blue is document's already" in faults(NODE, hns=Share(networks=(BLUE,)))
    lost = Share(parts=(Part(network="green"),))
    assert "no network 'green', where cni has objects" in faults(NODE, cni=lost)


# ---- in a running node -------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def daemon(place: Path) -> Iterator[Daemon]:
    with StateDir(place) as state, Daemon(Saved(1, NODE), state=state) as made:
        yield made


def subnets(daemon: Daemon) -> list[str]:
    return [str(r.prefix) for n in daemon.policy.networks for r in n.remote_subnets]


def test_a_front_door_replaces_its_own_share_only(daemon: Daemon) -> None:
    assert daemon.share("flannel") == Share()
    done = daemon.contribute("flannel", share(1, 2))
    assert done.generation == 2 and subnets(daemon) == ["10.1.1.0/24", "10.1.2.0/24"]
    daemon.contribute("hns", share(7))
    daemon.contribute("flannel", share(2))
    assert subnets(daemon) == ["10.1.2.0/24", "10.1.7.0/24"] or subnets(daemon) == [
        "10.1.7.0/24",
        "10.1.2.0/24",
    ]
    assert daemon.share("flannel") == share(2)
    daemon.apply(replace(NODE, networks=(replace(BLUE, mtu=1400),)))
    assert len(subnets(daemon)) == 2 and daemon.committed.own.networks[0].mtu == 1400
    daemon.contribute("flannel", Share())
    assert subnets(daemon) == ["10.1.7.0/24"] and "flannel" not in daemon.committed.shares


def test_a_refused_share_leaves_everything(daemon: Daemon) -> None:
    daemon.contribute("hns", share(1))
    before = daemon.committed
    with pytest.raises(DocumentError, match="hns's already"):
        daemon.contribute("flannel", share(1))
    with pytest.raises(StaleError):
        daemon.contribute("flannel", share(2), base=1)
    with pytest.raises(DataplaneError, match="use apply"):
        daemon.contribute(DOCUMENT, share(2))
    with pytest.raises(DocumentError, match="where hns has objects"):
        daemon.apply(replace(NODE, networks=(RED,)))
    tried = daemon.contribute("flannel", share(2), dry_run=True)
    assert (
        not tried.plan.is_empty
        and daemon.committed == before
        and subnets(daemon) == ["10.1.1.0/24"]
    )


def test_who_looks_is_told_the_origin(daemon: Daemon) -> None:
    daemon.apply(replace(NODE, networks=(replace(BLUE, remote_subnets=(far(9),)),)))
    daemon.contribute("flannel", share(1))
    told = listed("remote-subnets", daemon.engine, daemon.committed.shares)
    assert {r["name"]: r["origin"] for r in told} == {
        "blue/10.1.9.0/24": DOCUMENT,
        "blue/10.1.1.0/24": "flannel",
    }


def test_shares_are_saved_with_the_generation(place: Path) -> None:
    kept = replace(share(1), kept="lease 10.1.3.0/24")
    with StateDir(place) as state, Daemon(Saved(1, NODE), state=state) as daemon:
        daemon.contribute("flannel", kept)
        daemon.contribute("hns", Share(kept="changes no policy"))
        assert daemon.engine.generation == 2
    with StateDir(place) as state:
        saved = state.read()
        assert saved == Saved(
            2, NODE, {}, {"flannel": kept, "hns": Share(kept="changes no policy")}
        )
        with Daemon(saved, state=state) as daemon:
            assert subnets(daemon) == ["10.1.1.0/24"] and daemon.share("flannel") == kept
            assert daemon.engine.generation == 2


def test_a_document_takes_the_place_of_the_saved_one_and_of_no_share() -> None:
    """Addresses of neither it nor a share are given again, and those that it gives up are
    released."""
    one = ip_address("10.1.0.2")
    hns = Share(parts=(Part(network="blue", endpoints=(Endpoint(name="c", addresses=(one,)),)),))
    own = replace(BLUE, endpoints=(endpoint("old", 5), endpoint("stays", 6)))
    saved = Saved(7, replace(NODE, networks=(own,)), {"blue": ("10.1.0.3",)}, {"hns": hns})
    wanted = replace(BLUE, endpoints=(Endpoint(name="new"), Endpoint(name="stays")))
    made = saved.with_document(replace(NODE, networks=(wanted,)))
    new, stays = made.node.networks[0].endpoints
    assert (new.addresses, stays.addresses) == (
        (ip_address("10.1.0.4"),),
        own.endpoints[1].addresses,
    )
    assert (made.generation, made.shares) == (8, {"hns": hns})
    assert made.released == {"blue": ("10.1.0.3", "10.1.1.5")}
    with pytest.raises(DocumentError, match="where hns has objects"):
        saved.with_document(replace(NODE, networks=(RED,)))


def test_a_state_with_a_bad_share_is_refused(place: Path) -> None:
    with StateDir(place) as state:
        with state.saving(Saved(1, NODE, {}, {"flannel": share(1)})) as settle:
            settle()
        policy = place / "policy.json"
        policy.write_text(policy.read_text().replace("10.1.1.0/24", "10.1.1.0/99"))
        with pytest.raises(DocumentError, match="is no saved state"):
            state.read()
