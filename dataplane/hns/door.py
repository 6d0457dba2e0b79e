"""The door of a running node: HNS calls that are committed as its share, all or nothing."""

from msgspec.structs import replace

from dataplane.daemon import Daemon
from dataplane.errors import DocumentError, PortError
from dataplane.hns.calls import call, call_v1
from dataplane.hns.errors import HcnError
from dataplane.hns.export import NO_NETWORK, created, detached, exported
from dataplane.hns.store import KINDS, Store
from dataplane.hns.translate import ORIGIN, Translator, tap_name
from dataplane.hns.values import Value
from dataplane.shares import Share


class HnsDoor:
    """Methods may be called by any thread. Objects are saved with the share, so they are found
    again by whoever has the state directory next."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._translator = Translator()
        self._store: tuple[str, Store] | None = None  # of what was saved

    def store(self) -> Store:
        """The objects as they are committed: a copy."""
        with self._daemon.changing():
            return self._committed().copy()

    def export(self) -> Value:
        """Calls that make everything again, whoever put it in: objects of HNS as they are, all
        else as HNS would say it, and what it has no word for."""
        with self._daemon.changing():
            store = self._committed()
            own = {network.name for network in self._daemon.share(ORIGIN).networks}
            policy = self._daemon.engine.node
            assert policy is not None
            others = tuple(n for n in policy.networks if n.name not in own)
            made = exported(replace(policy, networks=others))
            lost = [
                guid
                for guid, balancer in store.objects["loadbalancers"].items()
                if others and not balancer.get("HostComputeEndpoints")
            ]
            kept = [
                detached(created(kind, document))
                for kind in KINDS
                for guid, document in store.objects[kind].items()
                if guid not in lost
            ]
            told = [f"loadbalancers {guid}: {NO_NETWORK}" for guid in lost]
            return {"Calls": [*kept, *made.calls], "Lost": [*told, *made.lost]}

    def call(
        self, method: str, path: str, body: Value = None, query: Value = None, *, v1: bool = False
    ) -> Value:
        """The answer of HNS. Raises HcnError, else DataplaneError: nothing is changed then."""
        with self._daemon.changing():
            store = self._committed().copy()
            answer = (
                call_v1(store, method, path, body) if v1 else call(store, method, path, body, query)
            )
            if store.objects != self._committed().objects:
                self._commit(store)
                if learn(store, self._daemon.share(ORIGIN)):  # addresses that it was given
                    self._commit(store)
                    if method == "POST" and isinstance(answer, dict) and "ID" in answer:
                        kind = path.strip("/").partition("/")[0]
                        answer = answer if v1 else store.get(kind, answer["ID"])
            return answer

    def _committed(self) -> Store:
        share, node = self._daemon.share(ORIGIN), self._daemon.committed.own
        if self._store is None or self._store[0] is not share.kept or self._store[1].node != node:
            store = Store.loads(node, share.kept)
            learn(store, share)
            self._store = share.kept, store
        return self._store[1]

    def _commit(self, store: Store) -> None:
        share = self._translator.share(store)
        try:
            self._daemon.contribute(ORIGIN, share)
        except DocumentError as error:
            told = "; ".join(f"{f.path}: {f.message} {f.fix}".strip() for f in error.faults[:5])
            taken = any("VIP and port" in fault.message for fault in error.faults)
            symbol = "HCN_E_PORT_ALREADY_EXISTS" if taken else "HCN_E_INVALID_POLICY"
            raise HcnError(symbol, told) from None
        except PortError as error:
            raise HcnError("HCN_E_NAMESPACE_ATTACH_FAILED", str(error)) from None
        self._store = self._daemon.share(ORIGIN).kept, store


def learn(store: Store, share: Share) -> bool:
    """Writes the addresses that endpoints without any were given into the store's objects."""
    endpoints = store.objects["endpoints"]
    lacking = [guid for guid, made in endpoints.items() if not made.get("IpConfigurations")]
    if not lacking:
        return False
    given = {
        endpoint.tap.name: (endpoint.addresses, network)
        for network in share.networks
        for endpoint in network.endpoints
        if endpoint.tap is not None
    }
    learned = False
    for guid in lacking:
        addresses, network = given.get(tap_name(guid), ((), None))
        if not addresses or network is None:
            continue
        configs = [
            {
                "IpAddress": str(address),
                "PrefixLength": next(p.prefixlen for p in network.prefixes if address in p),
            }
            for address in addresses
        ]
        endpoints[guid] = endpoints[guid] | {"IpConfigurations": configs}
        learned = True
    return learned
