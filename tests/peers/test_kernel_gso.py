"""Super-frames are cut, byte for byte, as the kernel cuts the same one.

It comes in by a TAP with virtio-net header, crosses a bridge, which changes nothing, and leaves by
a TAP that takes neither super-frames nor partial checksums.
"""

import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings

from dataplane.demo_net import run
from dataplane.offload import Super, cut
from dataplane.ports import Tap
from tests.test_offload import supers

HEADER = struct.Struct("<BBHHHH")  # virtio 1.2 section 5.1.6; 10 bytes
NEEDS_CSUM = 1


class Bridge:
    def __init__(self, netns: str, made: ExitStack) -> None:
        at = ("ip", "-n", netns, "link")
        run(*at, "add", "cutter", "type", "bridge", "mcast_snooping", "0")
        self.into = made.enter_context(Tap("into", netns=netns, mtu=1600, up=False))
        self.out = made.enter_context(Tap("out", netns=netns, mtu=1600, up=False, offload=False))
        for name in ("into", "out"):
            run(*at, "set", name, "master", "cutter")
        for name in ("cutter", "into", "out"):
            run(*at, "set", name, "addrgenmode", "none", "up")

    def cut(self, frame: Super, count: int) -> list[bytes]:
        """What the kernel makes of it: so many packets."""
        head = frame.start + ((frame.data[frame.start + 12] >> 4) * 4 if frame.field == 16 else 8)
        header = HEADER.pack(NEEDS_CSUM, frame.kind, head, frame.size, frame.start, frame.field)
        os.write(self.into.fileno(), header + frame.data)
        out: list[bytes] = []
        while len(out) < count and select.select([self.out.fileno()], [], [], 2)[0]:
            data = os.read(self.out.fileno(), 70_000)
            assert HEADER.unpack(data[:10]) == (0,) * 6, "the kernel left nothing to do"
            if data[10:22] == frame.data[:12]:  # else the bridge's own
                out.append(data[10:])
        return out


@pytest.fixture(scope="module")
def bridge(module_netns: Callable[..., list[str]]) -> Iterator[Bridge]:
    with ExitStack() as made:
        yield Bridge(*module_netns("g"), made)


@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    max_examples=400,
)
@given(frame=supers())
def test_cut_as_the_kernel_cuts(bridge: Bridge, frame: Super) -> None:
    ours = cut(frame)
    assert ours == bridge.cut(frame, len(ours))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)
@given(frame=supers(most=60_000))
def test_large_ones_are_cut_as_the_kernel_cuts(bridge: Bridge, frame: Super) -> None:
    ours = cut(frame)
    assert ours == bridge.cut(frame, len(ours))
