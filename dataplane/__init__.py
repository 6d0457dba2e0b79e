"""A userspace VXLAN dataplane: VFP's layers and unified flow table, programmed from Python."""
