"""Encoder: policies and shares as JSON, of which little changes from one time to the next."""

from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from dataplane.convert import encode
from dataplane.document import dump_json
from dataplane.memo import Memo
from dataplane.model import Document, Network, Node
from dataplane.shares import DOCUMENT, KEYS, Part, Share, Shares

Holder = TypeVar("Holder", Network, Part)


class Encoder:
    """What is the same object as the last time is not encoded again. For one thread at a time."""

    def __init__(self) -> None:
        self._memo = Memo()

    def __call__(self, node: Node, shares: Shares) -> tuple[bytes, bytes]:
        """As `dump_json` has the node's document, and as `told_shares` has the shares."""
        memo = Memo(self._memo)
        own = tuple(_encoded(n, (DOCUMENT, n.name), memo) for n in node.networks)
        told = {origin: _share(origin, share, memo) for origin, share in shares.items()}
        self._memo = memo
        return dump_json(Document(node=replace(node, networks=own))), told_shares(told)


def told_shares(shares: Shares) -> bytes:
    """As JSON; `shares_of` reads it back."""
    return msgspec.json.encode(dict(shares), enc_hook=encode)


def _share(origin: str, share: Share, memo: Memo) -> Share:
    return replace(
        share,
        networks=tuple(_encoded(n, (origin, n.name), memo) for n in share.networks),
        parts=tuple(_encoded(p, (origin, i), memo) for i, p in enumerate(share.parts)),
    )


def _encoded(holder: Holder, key: tuple[str, str | int], memo: Memo) -> Holder:
    """With the text of its objects in their place."""
    texts: dict[str, Any] = {
        field: memo.each((key, field), items, None, _text)
        for field in KEYS
        if (items := getattr(holder, field))
    }
    return replace(holder, **texts)


def _text(item: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(item, enc_hook=encode))
