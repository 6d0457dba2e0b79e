"""Whether a container's interface is still as it was made."""

from collections.abc import Iterator

from dataplane.errors import PortError
from dataplane.netns import inside
from dataplane.node_ports import Device


def faults(device: Device) -> list[str]:
    """What is gone, or is another, in words; nothing, if all is there."""
    try:
        return inside(device.tap.netns, lambda: [*_faults(device)])
    except PortError as error:
        return [str(error)]


def _faults(device: Device) -> Iterator[str]:
    from pyroute2 import IPRoute

    name = device.tap.name
    with IPRoute() as ipr:
        found = ipr.link_lookup(ifname=name)
        if not found:
            yield f"{name} is gone"
            return
        (link,) = ipr.get_links(found[0])
        if link.get_attr("IFLA_ADDRESS") != str(device.mac):
            yield f"the MAC of {name} is {link.get_attr('IFLA_ADDRESS')}, not {device.mac}"
        if link.get_attr("IFLA_MTU") != device.tap.mtu:
            yield f"the MTU of {name} is {link.get_attr('IFLA_MTU')}, not {device.tap.mtu}"
        own = {(a.get_attr("IFA_ADDRESS"), a["prefixlen"]) for a in ipr.get_addr(index=found[0])}
        for address, length, _ in device.addresses:
            if (str(address), length) not in own:
                yield f"{address}/{length} is gone"
        routes = ipr.get_default_routes(table=254)
        ways = {(r.get_attr("RTA_GATEWAY"), r.get_attr("RTA_OIF")) for r in routes}
        for gateway in device.gateways:
            if (str(gateway), found[0]) not in ways:
                yield f"the default route by {gateway} is gone"
