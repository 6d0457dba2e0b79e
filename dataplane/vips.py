"""VIPs: what a network's load balancers and port mappings are met under, and whom backends see."""

from collections.abc import Iterator, Mapping

from dataplane.address import IP, Span, ip16
from dataplane.memo import Memo
from dataplane.model import Endpoint, LoadBalancer, Network


def vip_spans(network: Network, memo: Memo) -> Mapping[Span, int]:
    """Each once, as keys: other dictionaries take them without hashing them again."""
    name = network.name
    balanced = memo.counted(("vips", name), network.load_balancers, None, _balanced)
    mapped = memo.counted(("mapped vips", name), network.endpoints, None, _mapped)
    return {**balanced, **mapped} if mapped else balanced


def _balanced(balancer: LoadBalancer) -> Iterator[Span]:
    yield from map(_span, balancer.vips)
    if balancer.source_vip is not None:  # a backend asks who has it, where it is of its own subnet
        yield _span(balancer.source_vip)


def _mapped(endpoint: Endpoint) -> Iterator[Span]:
    return (_span(m.vip) for m in endpoint.port_mappings if m.vip is not None)


def _span(vip: IP) -> Span:
    return ip16(vip), 128
