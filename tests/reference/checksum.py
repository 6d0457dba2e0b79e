"""Internet checksums: from scratch (RFC 1071) and by difference (RFC 1624, equation 3)."""


def fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def words(data: bytes) -> list[int]:
    """The 16-bit words of `data`, an odd last byte padded with zero."""
    padded = data + b"\0" * (len(data) % 2)
    return [int.from_bytes(padded[i : i + 2]) for i in range(0, len(padded), 2)]


def checksum(data: bytes) -> int:
    return ~fold(sum(words(data))) & 0xFFFF


def adjust(check: int, old: bytes, new: bytes) -> int:
    """HC' = ~(~HC + ~m + m') over the words that differ. A wrong checksum stays as wrong."""
    total = ~check & 0xFFFF
    for m, m_new in zip(words(old), words(new), strict=True):
        if m != m_new:
            total += (~m & 0xFFFF) + m_new
    return ~fold(total) & 0xFFFF


def pseudo_header(src: bytes, dst: bytes, proto: int, length: int) -> bytes:
    """Of RFC 9293 section 3.1 (IPv4) and RFC 8200 section 8.1: they have the same sum."""
    return src + dst + length.to_bytes(4) + proto.to_bytes(4)
