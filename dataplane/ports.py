"""Ports of the operating system: TAP devices and the UDP underlay."""

from dataplane.port import Port
from dataplane.tap import AdoptedTap, Tap
from dataplane.vxlan_socket import VxlanSocket

__all__ = ["AdoptedTap", "Port", "Tap", "VxlanSocket"]
