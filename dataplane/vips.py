"""VIPs: what a network's load balancers and port mappings are met under, and whom backends see."""

from collections.abc import Iterator
from itertools import chain

from dataplane.address import IP, Span, ip16
from dataplane.memo import Memo
from dataplane.model import LoadBalancer, Network


def vip_spans(network: Network, memo: Memo) -> dict[Span, None]:
    """Each once, as keys: other dictionaries take them without hashing them again."""
    of_balancers = memo.each(
        ("vips", network.name),
        network.load_balancers,
        None,
        lambda balancer: tuple((ip16(v), 128) for v in _own(balancer)),
    )
    mapped = tuple(m.vip for e in network.endpoints for m in e.port_mappings if m.vip is not None)
    spans = ((ip16(vip), 128) for vip in mapped)
    return memo(
        ("vip spans", network.name),
        (of_balancers, mapped),
        lambda: dict.fromkeys(chain(chain.from_iterable(of_balancers), spans)),
    )


def _own(balancer: LoadBalancer) -> Iterator[IP]:
    """A backend asks who has the source address, where that is of its own subnet."""
    yield from balancer.vips
    if balancer.source_vip is not None:
        yield balancer.source_vip
