"""Policy documents, YAML or JSON, to the model and back. All faults at once, with their lines.

    text ─► tree (values with lines) ─► model objects ─► cross-checks ─► Document
            yamltree, jsontree          convert           validate

JSON that is right takes a short cut: msgspec makes the model of it directly. Whatever the short cut
refuses is read again the long way, which has the last word.
"""

import json
import os
from collections.abc import Collection
from typing import Any

import msgspec

from dataplane import jsontree, validate, yamltree
from dataplane.convert import FAULTY, Converter, decode, encode
from dataplane.errors import DocumentError, Fault
from dataplane.garbage import no_collection
from dataplane.model import Document
from dataplane.tree import MAX_BYTES, Complaint, Tree, path_text


def load(path: str | os.PathLike[str], reasons: Collection[str] | None = None) -> Document:
    """The document in a file. Raises DocumentError with every fault, also if it cannot be read.

    `reasons`: the engine's drop reasons, so that expectations can be checked for them.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise DocumentError((Fault(name, 0, "$", message),)) from None
    return loads(raw, name, reasons)


def loads(
    text: str | bytes, name: str = "document", reasons: Collection[str] | None = None
) -> Document:
    """The document in a text, as `load`. A name that ends in .json admits JSON only."""
    try:
        with no_collection():
            return _loads(text, name, reasons)
    except Complaint as stop:
        raise DocumentError(faults_of(name, None, [stop])) from None


def _loads(text: str | bytes, name: str, reasons: Collection[str] | None) -> Document:
    raw, text = _checked(text)
    is_json = name.endswith(".json")
    if is_json or text.lstrip()[:1] == "{":
        document = _fast(raw)
        if document is not None and next(validate.check(document, reasons), None) is None:
            return document
    return _slow(text, is_json, name, reasons)


def read_tree(text: str | bytes) -> tuple[Tree, list[Complaint]]:
    """YAML or JSON as it is written, and what is wrong with it. Raises Complaint."""
    return _read(_checked(text)[1], is_json=False)


def dump(document: Document) -> str:
    """The document as YAML: `loads(dump(document)) == document`."""
    import yaml

    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(base):  # type: ignore[misc]
        """Quotes every text that would be read back as something else."""

    def text(dumper: Any, value: str) -> Any:
        quoted = not isinstance(yamltree.plain_scalar(value), str)
        return dumper.represent_scalar(
            "tag:yaml.org,2002:str", value, style='"' if quoted else None
        )

    Dumper.add_representer(str, text)
    Dumper.ignore_aliases = lambda self, data: True
    plain = {"version": document.version, **msgspec.to_builtins(document, enc_hook=encode)}
    options: dict[str, Any] = {"sort_keys": False, "default_flow_style": None, "width": 100}
    return str(yaml.dump(_lists(plain), Dumper=Dumper, allow_unicode=True, **options))


def dump_json(document: Document) -> bytes:
    """The document as JSON, which is faster: `loads(dump_json(document)) == document`."""
    return msgspec.json.encode(document, enc_hook=encode)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _checked(text: str | bytes) -> tuple[bytes, str]:
    """Bytes and text of a document of bearable size. Raises Complaint."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > MAX_BYTES:
            raise Complaint(
                (), f"larger than {MAX_BYTES >> 20} MiB", "split the networks over files"
            )
        raw = raw.removeprefix(b"\xef\xbb\xbf")
        text = raw.decode()
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = raw.count(b"\n", 0, start) + 1 if isinstance(error, UnicodeDecodeError) else 0
        raise Complaint((), f"not UTF-8 text (byte {start})", line=line) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise Complaint((), "holds a NUL: binary, not text", line=line)
    return raw, text


def _fast(raw: bytes) -> Document | None:
    """The document of right JSON, else None."""
    try:
        document = msgspec.json.decode(raw, type=Document, dec_hook=decode)
        return None if _has_twins(raw) else document
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _has_twins(raw: bytes) -> bool:
    """Whether an object has a key twice, which msgspec lets pass."""
    twins = []

    def see(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) != len(pairs):
            twins.append(pairs)

    json.loads(raw, object_pairs_hook=see)
    return bool(twins)


def _slow(text: str, is_json: bool, name: str, reasons: Collection[str] | None) -> Document:
    tree, complaints = _read(text, is_json)
    converter = Converter()
    document = None
    try:
        document = converter.make(tree, Document)
        complaints += converter.complaints
    except Complaint as too_many:
        complaints += [*converter.complaints, too_many]
    if document is not None and document is not FAULTY:
        complaints.extend(validate.check(document, reasons, partial=bool(complaints)))
    if complaints:
        raise DocumentError(faults_of(name, tree, complaints))
    return document  # type: ignore[return-value]


def _read(text: str, is_json: bool) -> tuple[Tree, list[Complaint]]:
    if is_json or text.lstrip()[:1] == "{":
        try:
            return jsontree.read(text)
        except Complaint:
            if is_json:
                raise
    return yamltree.read(text)


def faults_of(name: str, tree: Tree | None, complaints: list[Complaint]) -> tuple[Fault, ...]:
    """With lines where the tree has them, in their order."""
    faults = [
        Fault(
            name,
            complaint.line or (tree.line_of(complaint.path) if tree else 0),
            path_text(complaint.path),
            complaint.message,
            complaint.fix,
        )
        for complaint in complaints
    ]
    return tuple(sorted(faults, key=lambda fault: fault.line))
