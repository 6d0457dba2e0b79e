"""What one change costs among 2,000 load balancers over 5,000 endpoints, saved on the disk."""

import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from dataplane.daemon import Daemon
from dataplane.hns.door import HnsDoor
from dataplane.hns.store import Store
from dataplane.hns.translate import share
from dataplane.model import Node, Underlay
from dataplane.state_dir import Saved, StateDir
from tests import hns_documents as d

NODE = Node(name="a", underlay=Underlay(address=ip_address("127.0.0.9"), port=14_790))
FAR = "192.168.2.19"
SERVICES, ENDPOINTS, AGAIN = 2000, 5000, 5
MOST = 0.06  # seconds, the best of a few times; comparing and telling all of them takes 0.12


def guid(kind: int, number: int) -> str:
    return f"00000000-0000-0000-{kind:04}-{number:012}"


def balancer(members: list[str], vip: str, name: str) -> d.Document:
    return d.balancer(members, vip) | {"ID": name}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HnsDoor]:
    place = tmp_path_factory.mktemp("scale") / "state"
    with StateDir(place) as state, Daemon(Saved(1, NODE), state=state) as daemon:
        made = HnsDoor(daemon)
        made.call("POST", "networks", {"ID": d.NET, **d.FLANNEL_NETWORK})
        calls: list[d.Document] = [
            {
                "Path": "endpoints",
                "Body": d.remote_endpoint(f"10.245.{i >> 8}.{i & 255}", FAR) | {"ID": guid(0, i)},
            }
            for i in range(ENDPOINTS)
        ]
        for i in range(SERVICES):
            members = [guid(0, 2 * i), guid(0, 2 * i + 1)]
            body = balancer(members, f"10.96.{i >> 8}.{i & 255}", guid(1, i))
            calls.append({"Path": "loadbalancers", "Body": body})
        made.call("POST", "batch", calls)
        yield made


def best(change: Callable[[int], object], back: Callable[[int], object]) -> float:
    def once(i: int) -> float:
        begin = time.monotonic()
        change(i)
        took = time.monotonic() - begin
        back(i)
        return took

    return min(map(once, range(AGAIN)))


def test_each_change_costs_what_it_changes(door: HnsDoor) -> None:
    def far(i: int) -> d.Document:
        return d.remote_endpoint(f"10.246.0.{i}", FAR) | {"ID": guid(2, i)}

    def add(i: int) -> object:
        made = balancer([guid(0, 1), guid(0, 7)], f"10.97.0.{i}", guid(3, i))
        return door.call("POST", "loadbalancers", made)

    def update(i: int, vip: str = "10.98.0.{}") -> object:
        body = balancer([guid(0, 7)], vip.format(i), guid(1, 1000 + i))
        return door.call("PUT", f"loadbalancers/{guid(1, 1000 + i)}", body)

    def remove(kind: str, number: int) -> Callable[[int], object]:
        return lambda i: door.call("DELETE", f"{kind}/{guid(number, i)}")

    took = {
        "add a balancer": best(add, remove("loadbalancers", 3)),
        "update a balancer": best(update, lambda i: update(i, "10.99.0.{}")),
        "add an endpoint": best(
            lambda i: door.call("POST", "endpoints", far(i)), remove("endpoints", 2)
        ),
    }
    for i in range(AGAIN):
        add(i)
    took["remove a balancer"] = best(remove("loadbalancers", 3), add)
    assert all(seconds < MOST for seconds in took.values()), took


def test_what_is_made_step_by_step_is_what_is_made_at_once(door: HnsDoor) -> None:
    """A backend moves, and all of its balancers with it; nothing of before is left anywhere."""
    moved = d.remote_endpoint("10.245.99.99", FAR) | {"ID": guid(0, 11)}
    door.call("PUT", f"endpoints/{guid(0, 11)}", moved)
    door.call("DELETE", f"endpoints/{guid(0, 12)}")
    made, told = door._daemon.share("hns"), door.store()
    addresses = [str(b.address) for lb in made.networks[0].load_balancers for b in lb.backends]
    assert "10.245.99.99" in addresses and "10.245.0.11" not in addresses
    assert made == share(told)
    assert Store.loads(NODE, made.kept).objects == told.objects
    state = door._daemon._state
    assert state is not None
    saved = state.read()
    assert saved is not None and saved.shares == {"hns": made}
