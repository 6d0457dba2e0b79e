"""A node's devices: the underlay's sockets and the TAPs of its endpoints and host port.

Opened as its policy asks, and changed as the policy changes.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from msgspec import structs

from dataplane.address import IP, Mac, host_prefix
from dataplane.direct import DirectRoutes
from dataplane.errors import PortError
from dataplane.ids import HOST, UNDERLAY
from dataplane.link import Route
from dataplane.memo import Memo
from dataplane.model import Endpoint, HostPort, Network, Node, Tap, outbound_nats
from dataplane.netns import inside
from dataplane.ports import Port, VxlanSocket
from dataplane.ports import Tap as TapPort
from dataplane.rules import host_mac
from dataplane.tap import lost as lost_taps
from dataplane.tap import remove_kept
from dataplane.xdp import Xdp

DRAIN = 0.01  # seconds until loops have read what came before


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A TAP and what is set on it: addresses with prefix length and peer, and default gateways.

    `routes`: what the host finds behind it, and by which address. They may change while it is open,
    as its MTU may.
    """

    tap: Tap
    mac: Mac
    addresses: tuple[tuple[IP, int, IP | None], ...]
    gateways: tuple[IP, ...] = ()
    routes: frozenset[Route] = field(default=frozenset(), compare=False)

    @property
    def place(self) -> tuple[str | None, str]:
        return self.tap.netns, self.tap.name

    def stays(self, new: "Device") -> bool:
        """Whether the open one becomes that by its routes and its MTU alone."""
        return self == new or self == replace(new, tap=structs.replace(new.tap, mtu=self.tap.mtu))

    def open(self, offload: bool, queues: int, keep: bool) -> TapPort:
        """Raises PortError."""
        return inside(self.tap.netns, lambda: self._open(offload, queues, keep))

    def _open(self, offload: bool, queues: int, keep: bool) -> TapPort:
        tap, wanted = self.tap, self.tap.configure
        assert tap.mtu is not None, "the policy is resolved"
        port = TapPort(
            tap.name,
            netns=tap.netns,
            mac=self.mac if wanted else None,
            mtu=tap.mtu,
            persist=tap.persist,
            keep=keep,
            owner=tap.owner,
            offload=offload and tap.offload,
            queues=queues,
        )
        try:
            if wanted:
                for address, length, peer in self.addresses:
                    port.address(address, length, peer=peer)
                for gateway in self.gateways if tap.netns is not None else ():
                    port.default_route(gateway)  # never in our own namespace: the underlay is there
                port.routes.add(self.routes)
        except BaseException:
            port.close()
            raise
        return port


def devices(node: Node, memo: Memo) -> dict[str, Device]:
    """Of a resolved node, by port name."""
    found: dict[str, Device] = {}
    for network in node.networks:
        found |= memo.each(
            ("devices", network.name),
            network.endpoints,
            (network.prefixes, network.gateways),
            partial(_named_device, network),
        )
    if node.host_port is not None:
        found[HOST] = _of_host(node.host_port, node, memo)
    return found


def _named_device(network: Network, endpoint: Endpoint) -> tuple[str, Device]:
    return f"{network.name}/{endpoint.name}", device_of(endpoint, network)


def device_of(endpoint: Endpoint, network: Network) -> Device:
    """Of a resolved endpoint."""
    assert endpoint.tap is not None and endpoint.mac is not None, "the policy is resolved"
    addresses = tuple((a, _length(a, network), None) for a in endpoint.addresses)
    families = {a.version for a in endpoint.addresses}
    gateways = {g.version: g for g in reversed(network.gateways) if g.version in families}
    return Device(
        tap=endpoint.tap, mac=endpoint.mac, addresses=addresses, gateways=tuple(gateways.values())
    )


def _length(address: IP, network: Network) -> int:
    lengths = [p.prefixlen for p in network.prefixes if address in p]
    return max(lengths, default=address.max_prefixlen)


def _of_host(host: HostPort, node: Node, memo: Memo) -> Device:
    own = (host.peer, host.peer.max_prefixlen, host.address)
    routes = frozenset().union(*_host_routes(host, node, memo))
    return Device(tap=host.tap, mac=host_mac(host.peer), addresses=(own,), routes=routes)


def _host_routes(host: HostPort, node: Node, memo: Memo) -> Iterator[Iterable[Route]]:
    family = host.address.version

    def to(vips: Iterable[IP | None]) -> list[Route]:
        found = [vip for vip in vips if vip is not None and vip.version == family]
        return [Route(host_prefix(vip), host.address) for vip in found]

    yield to(nat.vip for nat in outbound_nats(node) if nat.vip != host.address)
    for network in node.networks:
        key = "routes", network.name
        yield memo.counted(key, network.load_balancers, host.address, lambda b: to(b.vips))
        yield to(m.vip for endpoint in network.endpoints for m in endpoint.port_mappings)
        source = next((s.network_address for s in network.host_subnets), None)
        behind = [p for p in network.prefixes if network.host_route and p.version == family]
        yield [Route(prefix, host.address, source) for prefix in behind]


def _standing(
    old: Mapping[str, Device], new: Mapping[str, Device]
) -> list[tuple[str, frozenset[Route], frozenset[Route]]]:
    """Devices that stay open: their routes before and after, where these differ."""
    both = [n for n in old if n in new and old[n].place == new[n].place and new[n].tap.configure]
    return [(n, old[n].routes, new[n].routes) for n in both if old[n].routes != new[n].routes]


def _outlive(ports: Iterable[Port], wanted: bool) -> None:
    for port in ports:
        if isinstance(port, TapPort):
            port.outlive(wanted)


def _tap(port: Port) -> TapPort:
    assert isinstance(port, TapPort)
    return port


def _sockets(node: Node) -> dict[str, Any]:
    """Arguments of its VxlanSocket. What one network asks of UDP checksums holds for all."""
    own, wires = node.underlay, [n.wire for n in node.networks]
    return {
        "address": own.address,
        "address6": own.address6,
        "port": own.port,
        "checksum4": any(w.udp_checksum == "full" for w in wires),
        "zero6": any(w.udp6_zero_rx for w in wires),
        "offload": own.offload,
        "xdp": own.xdp,
    }


_Ports = dict[str, VxlanSocket | TapPort]


class Change(NamedTuple):
    """`interrupts`: the ports differ from before. `settle`: waits until the host has the routes;
    raises PortError."""

    interrupts: bool
    settle: Callable[[], None]


class NodePorts:
    """Owns the open ports of a node, and its `direct` routes. `open_ports` is what a forwarder
    takes.

    `offload`: False where no port may have any, whatever the policy says. `queues` of each port.
    `keep`: devices outlive a process that is killed, and wait for the next one. `xdp`: the
    underlay's interface for it, whatever the policy says.
    """

    def __init__(
        self,
        offload: bool = True,
        queues: int = 1,
        keep: bool = False,
        xdp: str | None = None,
    ) -> None:
        self._offload, self._queues, self._keep, self._xdp = offload, queues, keep, xdp
        self._wanted_xdp: str | None = None
        self._sockets: dict[str, Any] = {}
        self._devices: dict[str, Device] = {}
        self._ports: _Ports = {}
        self.direct = DirectRoutes()
        self._memo = Memo()

    @property
    def open_ports(self) -> Mapping[str, Port]:
        return dict(self._ports)

    @property
    def xdp(self) -> Xdp | None:
        port = self._ports.get(UNDERLAY)
        return port.xdp if isinstance(port, VxlanSocket) else None

    def lost(self) -> dict[str, str]:
        """Ports whose device is no more, and its name; of the underlay, whose address."""
        taps = {port: name for name, port in list(self._ports.items()) if isinstance(port, TapPort)}
        found = {taps[tap]: str(tap) for tap in lost_taps(taps)}
        underlay = self._ports.get(UNDERLAY)
        if isinstance(underlay, VxlanSocket) and (gone := underlay.lost()):
            found[UNDERLAY] = f"address {', '.join(map(str, gone))}"
        return found

    @property
    def _underlay(self) -> VxlanSocket:
        port = self._ports[UNDERLAY]
        assert isinstance(port, VxlanSocket)
        return port

    @property
    def lacks_xdp(self) -> str | None:
        """The interface that AF_XDP is wanted on, but is not."""
        return None if self.xdp and self.xdp.is_there else self._wanted_xdp

    @contextlib.contextmanager
    def renewed(self) -> Iterator[bool]:
        """Inside the block AF_XDP is where it was lacking, if it can be: True, for new loops."""
        port, old, wanted = self._underlay, self.xdp, self.lacks_xdp
        if wanted:
            with contextlib.suppress(PortError):
                port.xdp = port.open_xdp(wanted)
        try:
            yield port.xdp is not old
        finally:
            if old and port.xdp is not old:
                old.close()

    @contextlib.contextmanager
    def without_xdp(self) -> Iterator[None]:
        """Inside the block, and after it, frames come by the sockets; loops must have ended by its
        end."""
        port, xdp = self._underlay, self.xdp
        if xdp:
            xdp.let_go()
            time.sleep(DRAIN)
        yield
        port.xdp = None
        if xdp:
            xdp.close()

    def open(self, node: Node, before: Node | None = None) -> None:
        """All ports of a resolved node. `before`: another policy, also resolved, of whose process
        devices may be left. Raises PortError; `close` then closes what was opened."""
        self._sockets = _sockets(node)
        offload = self._offload and node.underlay.offload
        self._wanted_xdp = xdp = self._xdp or node.underlay.xdp
        wanted = {**self._sockets, "offload": offload, "queues": self._queues, "xdp": xdp}
        self._ports[UNDERLAY] = VxlanSocket(**wanted)
        wanted_devices = devices(node, self._memo)
        if before is not None:
            self._remove_left(before, wanted_devices)
        for name, device in wanted_devices.items():
            self._ports[name] = device.open(self._offload, self._queues, self._keep)
            self._devices[name] = device
        self.direct.begin(node)

    def _remove_left(self, before: Node, wanted: Mapping[str, Device]) -> None:
        """TAPs kept by a process that was killed, unless they are wanted as they are."""
        standing = {device.place: device for device in wanted.values()}
        for device in devices(before, Memo()).values():
            new = standing.get(device.place)
            if new is None or not device.stays(new) or device.routes != new.routes:
                remove_kept(device.tap.name, device.tap.netns, self._queues)

    def outlive(self) -> None:
        """All of them wait for the next process, if this one is killed and they are to be kept."""
        _outlive(self._ports.values(), True)

    def state(self) -> dict[str, Any]:
        """What `inherit` takes; JSON."""
        return {name: port.state() for name, port in self._ports.items()}

    def fds(self) -> list[int]:
        """Of all ports."""
        found: list[int] = []
        for port in self._ports.values():
            state = port.state()
            for group in (state,) if "fds" in state else (state["receive"], state["send"]):
                found += [fd for fds in group.values() if isinstance(fds, list) for fd in fds]
        return found

    def inherit(self, node: Node, state: dict[str, Any]) -> None:
        """The ports that another process had opened for the same policy, without AF_XDP."""
        self._wanted_xdp = self._xdp or node.underlay.xdp
        self._sockets, self._devices = _sockets(node), devices(node, self._memo)
        for name, each in state.items():
            kind = VxlanSocket if name == UNDERLAY else TapPort
            self._ports[name] = kind.inherited(each)
        self.direct.inherit(node)

    def leave(self) -> None:
        """Closes them for this process only."""
        self.direct.leave()
        while self._ports:
            self._ports.popitem()[1].leave()

    @contextlib.contextmanager
    def change(self, node: Node) -> Iterator[Change]:
        """Inside the block ports, MTUs and, once it is settled, routes are those of the new policy,
        beside old routes.

        If the block raises they are as they were, else what is not wanted any more goes. Only what
        is of a policy that was committed outlives a process that is killed.
        """
        memo = Memo(self._memo)
        wanted = devices(node, memo)
        other = {n: device for n, device in wanted.items() if self._devices.get(n) is not device}
        self._refuse(node, other)
        before = self._ports, self._devices
        with (
            self._opened(wanted) as after,
            self._resized(after, other) as resized,
            self._routed(after, other) as settle,
            self.direct.changed(node),
        ):
            self._ports, self._devices = after, wanted
            try:
                yield Change(resized or after != before[0], settle)
            except BaseException:
                self._ports, self._devices = before
                raise
            self._memo = memo

    @contextlib.contextmanager
    def _opened(self, wanted: Mapping[str, Device]) -> Iterator[_Ports]:
        """The ports of these devices: those that are open already, and new ones."""
        lost = self.lost()
        held = {d.place: self._ports[n] for n, d in self._devices.items() if n not in lost}
        after: _Ports = {UNDERLAY: self._ports[UNDERLAY]}
        fresh: list[TapPort] = []
        leaving: list[Port] = []
        try:
            for name, device in wanted.items():
                if device.place not in held:
                    fresh.append(device.open(self._offload, self._queues, self._keep))
                after[name] = held.get(device.place) or fresh[-1]
            leaving = [*{*self._ports.values()} - {*after.values()}]
            _outlive(leaving, False)
            yield after
        except BaseException:
            _outlive(leaving, True)
            for opened in fresh:
                opened.close()
            raise
        _outlive(fresh, True)
        for left in leaving:
            left.close()

    @contextlib.contextmanager
    def _resized(self, ports: _Ports, other: Mapping[str, Device]) -> Iterator[bool]:
        """True if a device that stays open has another MTU inside the block."""
        both = [(_tap(ports[name]), device.tap.mtu) for name, device in other.items()]
        begun: list[tuple[TapPort, int]] = []
        try:
            for port, mtu in both:
                assert mtu is not None, "the policy is resolved"
                if port.mtu != mtu:
                    begun.append((port, port.mtu))
                    port.resize(mtu)
            yield bool(begun)
        except BaseException:
            for port, mtu in begun:
                with contextlib.suppress(PortError):
                    port.resize(mtu)
            raise

    @contextlib.contextmanager
    def _routed(self, ports: _Ports, other: Mapping[str, Device]) -> Iterator[Callable[[], None]]:
        """What the host finds behind devices that stay open, beside what it found before: from when
        it is called on."""
        standing = _standing(self._devices, other)
        begun: list[tuple[TapPort, frozenset[Route], frozenset[Route]]] = []
        waits: list[Callable[[], None]] = []

        def settle() -> None:
            for wait in waits:
                wait()

        try:
            for name, old, new in standing:
                begun.append((_tap(ports[name]), old, new))
                waits.append(_tap(ports[name]).routes.begin(new - old))
            yield settle
            settle()
        except BaseException:
            for port, old, new in begun:
                with contextlib.suppress(PortError):
                    port.routes.add(old - new)
                port.routes.remove(new - old, old)
            raise
        for port, old, new in begun:
            port.routes.remove(old - new, new)

    def _refuse(self, node: Node, other: Mapping[str, Device]) -> None:
        """What cannot change while the node runs. `other`: devices that are not as they were."""
        again = "end it and run it again" + " with --from-file" * self._keep
        changed = [key for key, value in _sockets(node).items() if value != self._sockets[key]]
        if changed:
            sums = {"checksum4", "zero6"} & {*changed}
            what = "UDP checksums" if sums and sums == {*changed} else "underlay"
            raise PortError(f"node {node.name}: its {what} cannot change while it runs: {again}")
        held = {device.place: device for device in self._devices.values()}
        for name, device in other.items():
            if not held.get(device.place, device).stays(device):
                raise PortError(
                    f"{name}: TAP {device.tap.name} is open with other settings or addresses: "
                    f"use one of another name, or of the node: {again}"
                )

    def close(self) -> None:
        """Again is harmless."""
        self.direct.close()
        while self._ports:
            self._ports.popitem()[1].close()
        self._devices.clear()
