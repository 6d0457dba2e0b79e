"""VIPs: what a network's load balancers and port mappings are met under, and whom backends see."""

from collections.abc import Iterator
from itertools import chain

from dataplane.address import IP, Span, ip16
from dataplane.memo import Memo
from dataplane.model import LoadBalancer, Network


def vip_spans(network: Network, memo: Memo) -> tuple[Span, ...]:
    """Each once."""
    of_balancers = memo.each(
        ("vips", network.name),
        network.load_balancers,
        None,
        lambda balancer: tuple((ip16(v), 128) for v in _own(balancer)),
    )
    mapped = (m.vip for e in network.endpoints for m in e.port_mappings)
    spans = (*chain.from_iterable(of_balancers), *((ip16(v), 128) for v in mapped if v is not None))
    return memo(("vip spans", network.name), spans, lambda: tuple(dict.fromkeys(spans)))


def _own(balancer: LoadBalancer) -> Iterator[IP]:
    """A backend asks who has the source address, where that is of its own subnet."""
    yield from balancer.vips
    if balancer.source_vip is not None:
        yield balancer.source_vip
