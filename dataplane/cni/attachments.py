"""Attachments: endpoints whose TAPs are containers' interfaces, made and removed as a container
runtime asks. They are the share of origin "cni", in networks of whomever.

One whose network namespace is gone, or is another by now, is of a container that nobody removed: it
goes by itself.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from dataplane.daemon import Daemon
from dataplane.errors import DataplaneError, MissingError, PortError
from dataplane.model import Endpoint
from dataplane.netns import path_of
from dataplane.node_ports import Device, device_of
from dataplane.shares import Part, Share
from dataplane.state_dir import Saved

ORIGIN = "cni"
LENGTHS = 12, 47  # of a container's ID in an endpoint's name: short as people say it, else longer

Key = tuple[str, str]  # container and interface
Value = dict[str, Any]

log = logging.getLogger("dataplane")


class Attachment(NamedTuple):
    """`config`: the CNI network's name, whose attachments its GC may remove. `home`: the number of
    the network namespace, so that another of the same name is told from it."""

    container: str
    ifname: str
    config: str
    home: int
    network: str
    endpoint: Endpoint

    @property
    def key(self) -> Key:
        return self.container, self.ifname

    @property
    def is_alive(self) -> bool:
        assert self.endpoint.tap is not None and self.endpoint.tap.netns is not None
        try:
            return os.stat(path_of(self.endpoint.tap.netns)).st_ino == self.home
        except OSError:
            return False


def attachments_of(share: Share) -> dict[Key, Attachment]:
    """In the order in which they were made."""
    kept: dict[str, tuple[str, str, str, int]] = json.loads(share.kept) if share.kept else {}
    found = [
        Attachment(*kept[f"{part.network}/{endpoint.name}"], part.network, endpoint)
        for part in share.parts
        for endpoint in part.endpoints
    ]
    return {attachment.key: attachment for attachment in found}


def share_of(attachments: Iterable[Attachment]) -> Share:
    """The other way round."""
    parts: dict[str, list[Endpoint]] = {}
    kept = {}
    for attachment in attachments:
        parts.setdefault(attachment.network, []).append(attachment.endpoint)
        kept[f"{attachment.network}/{attachment.endpoint.name}"] = attachment[:4]
    return Share(
        parts=tuple(Part(network=name, endpoints=tuple(e)) for name, e in parts.items()),
        kept=json.dumps(kept) if kept else "",
    )


def living(saved: Saved) -> Saved:
    """What a node begins with, without containers that went while no node ran."""
    before = attachments_of(saved.shares.get(ORIGIN) or Share())
    after = [attachment for attachment in before.values() if attachment.is_alive]
    if len(after) == len(before):
        return saved
    log.info("cni: %d containers went meanwhile", len(before) - len(after))
    shares = {**saved.shares, ORIGIN: share_of(after)}
    return saved._replace(generation=saved.generation + 1, shares=shares)


class Attachments:
    """Of a running node. Methods may be called by any thread; they raise DataplaneError, and
    nothing is changed then."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def attach(self, key: Key, network: str, config: str, endpoint: Endpoint) -> Value:
        """Makes the container's interface: `endpoint` as it is asked for, by whatever name."""
        container, ifname = key
        tap = endpoint.tap
        if tap is None or tap.name != ifname or tap.netns is None:
            raise DataplaneError(f"tap: needs the name {ifname} and a network namespace")
        with self._daemon.changing():
            held = attachments_of(self._daemon.share(ORIGIN))
            if key in held:
                raise PortError(f"{container} has an interface {ifname} already: remove it first")
            names = {(a.network, a.endpoint.name) for a in held.values()}
            name = next((n for n in _names(key) if (network, n) not in names), None)
            if name is None:
                raise PortError(f"another container has the endpoint {_names(key)[-1]}")
            made = replace(endpoint, name=name)
            attachment = Attachment(*key, config, _number(tap.netns), network, made)
            self._commit([*held.values(), attachment])
            return self._told(attachment)

    def detach(self, key: Key) -> bool:
        """Removes it; False: there is none. Again is harmless."""
        return bool(self._keep(lambda attachment: attachment.key != key))

    def keep_only(self, config: str, valid: Iterable[Key]) -> list[Key]:
        """Removes what a CNI network has besides these."""
        known = {*valid}
        return self._keep(lambda a: a.config != config or a.key in known)

    def drop_dead(self) -> None:
        """Removes those whose network namespace is gone, or is another by now."""
        if all(a.is_alive for a in attachments_of(self._daemon.share(ORIGIN)).values()):
            return
        for container, ifname in self._keep(lambda attachment: attachment.is_alive):
            log.info("cni: %s of %s went with its network namespace", ifname, container)

    def listed(self) -> list[Value]:
        with self._daemon.changing():
            return [*map(self._told, attachments_of(self._daemon.share(ORIGIN)).values())]

    def find(self, key: Key) -> tuple[Value, Device]:
        """How it was made, and the device that it should be. Raises MissingError."""
        with self._daemon.changing():
            attachment = attachments_of(self._daemon.share(ORIGIN)).get(key)
            if attachment is None:
                raise MissingError(f"{key[0]} has no interface {key[1]} here")
            return self._told(attachment), self._device(attachment)

    def _keep(self, wanted: Callable[[Attachment], bool]) -> list[Key]:
        """Removes all others; which those are."""
        with self._daemon.changing():
            held = attachments_of(self._daemon.share(ORIGIN))
            kept = {key: each for key, each in held.items() if wanted(each)}
            if len(kept) < len(held):
                self._commit(kept.values())
            return [key for key in held if key not in kept]

    def _commit(self, attachments: Iterable[Attachment]) -> None:
        self._daemon.contribute(ORIGIN, share_of(attachments))

    def _device(self, attachment: Attachment) -> Device:
        network = next(n for n in self._daemon.policy.networks if n.name == attachment.network)
        name = attachment.endpoint.name
        return device_of(next(e for e in network.endpoints if e.name == name), network)

    def _told(self, attachment: Attachment) -> Value:
        device = self._device(attachment)
        gateways = {gateway.version: str(gateway) for gateway in device.gateways}
        return {
            "container": attachment.container,
            "ifname": attachment.ifname,
            "config": attachment.config,
            "network": attachment.network,
            "endpoint": attachment.endpoint.name,
            "netns": device.tap.netns,
            "mac": str(device.mac),
            "mtu": device.tap.mtu,
            "addresses": [
                {"address": f"{address}/{length}", "gateway": gateways.get(address.version)}
                for address, length, _ in device.addresses
            ],
        }


def _names(key: Key) -> list[str]:
    container, ifname = key
    return [f"{container[:length]}-{ifname}" for length in LENGTHS]


def _number(netns: str) -> int:
    try:
        return os.stat(path_of(netns)).st_ino
    except OSError as error:
        raise PortError(f"{netns}: {error.strerror}") from error


def key_of(path: Mapping[str, str]) -> Key:
    """As the API's paths name it."""
    return path["container"], path["ifname"]
