"""The orders of flannel, win-overlay and kube-proxy, replayed on a node in memory."""

from dataplane.hns.calls import call
from dataplane.hns.store import Store
from dataplane.hns.translate import share
from dataplane.ids import HOST
from dataplane.lab import Lab
from dataplane.reasons import Verdict
from tests import hns_documents as d
from tests.hns_orders import OWN, Ask, added, flannel, kube_proxy, win_overlay
from tests.test_hns import DR, NODE, Replay, network, outer, text


def asking(store: Store) -> Ask:
    return lambda *words: call(store, *words)


def test_flannel_win_overlay_kube_proxy() -> None:
    store = Store(NODE)
    ask = asking(store)
    guid = flannel(ask)
    added(ask, guid, "10.244.4.0/24", "192.168.2.19", "")
    added(ask, guid, "10.244.4.0/24", "192.168.2.19", DR)
    added(ask, guid, "10.244.4.0/24", "192.168.2.20", DR)  # the peer has another address now
    pod = win_overlay(ask, guid, "10.244.3.9")
    kube_proxy(ask, guid, pod)
    with Lab() as lab:
        replay = Replay(store, lab)
        own = next(n for n in replay.node.networks if n.name == "flannel.4096")
        assert len(own.endpoints) == 1 and len(own.remote_subnets) == 1
        direct = replay.send("tcp 10.244.3.9:4000 > 10.244.4.5:80 syn")
        assert outer(direct) == ("192.168.2.20", 4096)
        served = [replay.send(f"tcp 10.244.3.9:{p} > 10.96.0.10:80 syn") for p in range(5000, 5040)]
        seen = {text(out).split(" > ")[1].split()[0] for out in served}
        assert seen == {"10.244.3.9:8080", "10.244.4.5:8080"}
        assert {out.verdict for out in served} == {Verdict.FORWARD}
        outside = replay.send("tcp 169.254.9.2:4000 > 169.254.9.1:30080 syn", HOST)
        assert outside.verdict is Verdict.FORWARD and "> 10.244.3.9:8080" in text(outside)


def test_flannel_again_finds_its_network() -> None:
    """A restart of flanneld makes no second network, and changes nothing."""
    store = Store(NODE)
    ask = asking(store)
    guid = flannel(ask)
    added(ask, guid, "10.244.4.0/24", "192.168.2.19", DR)
    before = share(store)
    assert store.enumerate("networks", {"Name": "flannel.4096"}) == [guid]
    call(store, "POST", f"networks/{guid}/modify", d.HOST_ROUTE)
    call(
        store,
        "POST",
        f"networks/{guid}/modify",
        d.remote_subnet("10.244.4.0/24", "192.168.2.19", DR),
    )
    assert share(store) == before


def test_2000_services_in_one_batch() -> None:
    store = Store(NODE)
    call(store, "POST", "networks", {"ID": d.NET, **d.FLANNEL_NETWORK})
    ends = [
        d.remote_endpoint(f"10.245.{i >> 8}.{i & 255}", OWN)
        | {"ID": f"00000000-0000-0000-0000-{i:012}"}
        for i in range(1, 5001)
    ]
    balancers = [
        d.balancer([ends[2 * i]["ID"], ends[2 * i + 1]["ID"]], f"10.96.{i >> 8}.{i & 255}")
        | {"ID": f"00000000-0000-0000-0001-{i:012}"}
        for i in range(1, 2001)
    ]
    calls = [{"Path": "endpoints", "Body": end} for end in ends]
    calls += [{"Path": "loadbalancers", "Body": balancer} for balancer in balancers]
    call(store, "POST", "batch", calls)
    assert len(network(store).load_balancers) == 2000
