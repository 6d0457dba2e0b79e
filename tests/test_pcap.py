"""pcap and pcapng: what was written is read again, by us and by others; broken files are errors."""

import contextlib
import io
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import pcap
from dataplane.errors import DataplaneError
from dataplane.pcap import ClassicWriter, Packet, Writer

ROOT = Path(__file__).resolve().parent.parent
CAPTURES = Path(os.environ.get("DATAPLANE_CAPTURES", ROOT / "../shared/captures"))
FRAME = bytes(range(60))
NOW = 1_700_000_000_123_456_789

CUT = st.just(0) | st.integers(201, 1 << 18)  # above any data here
packets = st.builds(
    Packet,
    st.integers(0, 2**62),
    st.binary(max_size=200),
    st.sampled_from([1, 101]),
    st.text(max_size=15),
    st.text(max_size=50),
    CUT,
)
classic = st.builds(
    Packet,
    st.integers(0, 4 * 10**18),
    st.binary(max_size=200),
    st.just(1),
    st.just(""),
    st.just(""),
    CUT,
)


def _load(data: bytes, tmp_path: Path) -> list[Packet]:
    path = tmp_path / "x"
    path.write_bytes(data)
    return list(pcap.read(path))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pcap")


@given(wanted=st.lists(packets, max_size=5))
def test_pcapng_round_trip(wanted: list[Packet], directory: Path) -> None:
    buffer = io.BytesIO()
    with Writer(buffer) as writer:
        for packet in wanted:
            writer.write(packet)
    assert _load(buffer.getvalue(), directory) == wanted


@given(wanted=st.lists(classic))
def test_pcap_round_trip(wanted: list[Packet], directory: Path) -> None:
    buffer = io.BytesIO()
    with ClassicWriter(buffer) as writer:
        for packet in wanted:
            writer.write(packet)
    assert _load(buffer.getvalue(), directory) == wanted


def test_scapy_reads_what_we_write(tmp_path: Path) -> None:
    scapy = pytest.importorskip("scapy.all")
    with Writer(tmp_path / "a.pcapng") as ng, ClassicWriter(tmp_path / "a.pcap") as classic:
        for name, comment in (("web", "acl_deny"), ("underlay", ""), ("web", "grün")):
            packet = Packet(NOW, FRAME, interface=name, comment=comment)
            ng.write(packet)
            classic.write(packet)
    read = list(scapy.PcapNgReader(str(tmp_path / "a.pcapng")))
    assert [p.sniffed_on for p in read] == ["web", "underlay", "web"]
    assert b"acl_deny" in (getattr(read[0], "comments", None) or [read[0].comment])
    assert [bytes(p) for p in read] == [FRAME] * 3
    assert all(abs(float(p.time) - NOW / 1e9) < 1e-6 for p in read)
    assert [bytes(p) for p in scapy.PcapReader(str(tmp_path / "a.pcap"))] == [FRAME] * 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "tick"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_both_byte_orders_and_both_resolutions(
    order: str, magic: int, tick: int, tmp_path: Path
) -> None:
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 101)
    data += struct.pack(order + "IIII", 7, 5, 3, 3) + b"abc"
    assert _load(data, tmp_path) == [Packet(7_000_000_000 + 5 * tick, b"abc", 101)]


def _ng(order: str, kind: int, body: bytes) -> bytes:
    body += b"\0" * (-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_of_others(order: str, tmp_path: Path) -> None:
    """Two sections, a binary resolution with an offset, an unknown block, a simple packet."""
    section = _ng(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    options = struct.pack(order + "HHB3xHHq", 9, 1, 0x80 | 10, 14, 8, 100)
    interface = _ng(order, 1, struct.pack(order + "HHI", 113, 0, 0) + options)
    enhanced = _ng(order, 6, struct.pack(order + "IIIII", 0, 0, 1536, 2, 2) + b"ab")
    simple = _ng(order, 3, struct.pack(order + "I", 3) + b"xyz")
    found = _load(
        (section + interface + _ng(order, 0xBAD, b"??") + enhanced + simple) * 2, tmp_path
    )
    assert found == [Packet(101_500_000_000, b"ab", 113), Packet(0, b"xyz", 113)] * 2


def test_one_link_type_in_a_classic_file() -> None:
    with ClassicWriter(io.BytesIO()) as writer, pytest.raises(DataplaneError, match="pcapng"):
        writer.write(Packet(NOW, FRAME, 101))


def test_frames_above_64_kib(tmp_path: Path) -> None:
    with Writer(tmp_path / "big") as writer:
        writer.write(Packet(NOW, bytes(200_001)))
    assert len(next(pcap.read(tmp_path / "big")).data) == 200_001


@pytest.mark.parametrize("data", [b"", b"abc", b"GIF89a" * 10, b"\xd4\xc3\xb2\xa1", bytes(100)])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataplaneError, match="x: "):
        _load(data, tmp_path)


def test_a_size_that_lies_is_refused(tmp_path: Path) -> None:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    with pytest.raises(DataplaneError, match="cut or broken"):
        _load(head + struct.pack("<IIII", 0, 0, 0xFFFFFFF0, 1), tmp_path)
    section = _ng("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    interface = _ng("<", 1, struct.pack("<HHI", 1, 0, 0))
    with pytest.raises(DataplaneError, match="broken block"):
        _load(
            section + interface + _ng("<", 6, struct.pack("<IIIII", 0, 0, 0, 9, 9) + b"ab"),
            tmp_path,
        )
    with pytest.raises(DataplaneError, match="broken block"):
        _load(section + _ng("<", 6, struct.pack("<IIIII", 0, 0, 0, 0, 0)), tmp_path)


@given(data=st.data())
def test_broken_files_are_errors_of_ours(data: st.DataObject, directory: Path) -> None:
    for kind in (Writer, ClassicWriter):
        buffer = io.BytesIO()
        with kind(buffer) as writer:
            writer.write(Packet(NOW, FRAME, interface="web", comment="no"))
        whole = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(0, 3))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
        with contextlib.suppress(DataplaneError):
            _load(cut, directory)


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures: set DATAPLANE_CAPTURES")
def test_every_capture_is_read_whole() -> None:
    lines = (CAPTURES / "INDEX.tsv").read_text().splitlines()
    columns = lines[0].split("\t")
    for line in lines[1:]:
        row = dict(zip(columns, line.split("\t"), strict=True))
        found = list(pcap.read(CAPTURES / row["file"]))
        assert len(found) == int(row["packets"]), row["file"]
        assert max((len(p.data) for p in found), default=0) == int(row["max_frame"]), row["file"]
