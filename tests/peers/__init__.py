"""Other people's dataplanes beside this one, given the same packets.

Linux's VXLAN device, Linux's NAT, Open vSwitch's userspace datapath, Wireshark's dissectors. What
differs is written down as meant (CONFORMANCE.md, "Where Linux differs"), or a test fails.
"""
