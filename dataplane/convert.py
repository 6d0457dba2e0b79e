"""Values to model objects: for a decoder one at a time, for a `Tree` all at once with every fault.

So that what is left can be checked further: a faulty item of a list of objects is left out, a
faulty value that has a default counts as not given, and any other takes its object with it.
"""

import functools
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from dataplane.address import IP, Mac, Malformed, Prefix, Vni, parse_ip, parse_prefix
from dataplane.model import Model, PortRange
from dataplane.tree import Complaint, Path, Tree

MAX_COMPLAINTS = 1000

Raw = None | bool | int | float | str


class _Faulty:
    """Stands for a value that could not be made."""


FAULTY: Final = _Faulty()


# ---- scalars --------------------------------------------------------------------------------


def _ip(raw: Raw) -> IP:
    return parse_ip(_text(raw, "an IP address"))


def _prefix(raw: Raw) -> Prefix:
    return parse_prefix(_text(raw, "a prefix"))


def _mac(raw: Raw) -> Mac:
    if isinstance(raw, int) and not isinstance(raw, bool):
        raise Malformed(f"{raw} is a number, not a MAC address", f"quote the MAC{_base60(raw)}")
    return Mac(_text(raw, "a MAC address"))


def _vni(raw: Raw) -> Vni:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise Malformed(f"{_show(raw)} is not a VNI", "a number from 0 to 16777215")
    return Vni(raw)


def _ports(raw: Raw) -> PortRange:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return PortRange(raw, raw)
    return PortRange.parse(_text(raw, "a port or range"))


def _text(raw: Raw, wanted: str) -> str:
    if not isinstance(raw, str):
        raise Malformed(f"{_show(raw)} is not {wanted}", "quote it" if raw is not None else "")
    return raw


def _has_surrogate(value: object) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def _base60(number: int) -> str:
    """YAML 1.1 reads six decimal pairs as one number of base 60: say which MAC it was."""
    pairs = []
    for _ in range(6):
        number, pair = divmod(number, 60)
        pairs.append(f"{pair:02}")
    return "" if number else f': "{":".join(reversed(pairs))}"'


def _show(raw: object) -> str:
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, dict):
        return "a mapping"
    if isinstance(raw, list):
        return "a list"
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    IP: _ip,
    Prefix: _prefix,
    Mac: _mac,
    Vni: _vni,
    PortRange: _ports,
}


def decode(kind: Any, raw: Any) -> Any:
    """A decoder's hook (msgspec `dec_hook`). Raises ValueError."""
    return _SCALARS[kind](raw)


def encode(value: Any) -> str | int:
    """The inverse of `decode` (msgspec `enc_hook`)."""
    if isinstance(value, Vni):
        return int(value)
    if isinstance(value, PortRange) and value.first == value.last:
        return value.first
    return str(value)


# ---- trees ----------------------------------------------------------------------------------


@functools.cache
def fields_of(kind: type[Model]) -> dict[str, tuple[Any, bool]]:
    """Per field of a model class: its type, and whether it must be given."""
    return {f.encode_name: (f.type, f.required) for f in msgspec.structs.fields(kind)}


def takes_scalar(kind: Any) -> bool:
    """Whether a list of these may be written as one bare value: `remote_ports: 80`."""
    return kind in _SCALARS


def holds_objects(kind: Any) -> bool:
    """Whether others may refer to what such a value says, so that its default would mislead."""
    inner = typing.get_args(kind) or (kind,)
    return any(isinstance(k, type) and issubclass(k, Model) for k in inner)


class Converter:
    """Makes model objects of trees and keeps all complaints."""

    def __init__(self) -> None:
        self.complaints: list[Complaint] = []

    def make(self, tree: Tree, kind: Any, path: Path = ()) -> Any:  # noqa: PLR0911
        """The value of type `kind`, or FAULTY. Raises Complaint after too many complaints."""
        origin = typing.get_origin(kind)
        if origin in (typing.Union, types.UnionType) and kind not in _SCALARS:
            return self._union(tree, typing.get_args(kind), path)
        if origin is tuple:
            return self._list(tree, typing.get_args(kind)[0], path)
        if origin is dict:
            return self._mapping(tree, typing.get_args(kind)[1], path)
        if origin is Literal:
            return self._literal(tree, typing.get_args(kind), path)
        if kind in _SCALARS:
            return self._scalar(tree, kind, path)
        if isinstance(kind, type) and issubclass(kind, Model):
            return self._object(tree, kind, path)
        return self._plain(tree, kind, path)

    def complain(self, tree: Tree, path: Path, message: str, fix: str = "") -> _Faulty:
        self.complaints.append(Complaint(path, message, fix, tree.line))
        if len(self.complaints) > MAX_COMPLAINTS:
            raise Complaint(
                path, f"and more: given up after {MAX_COMPLAINTS} faults", "", tree.line
            )
        return FAULTY

    def _object(self, tree: Tree, kind: type[Model], path: Path) -> Any:
        shorthand = getattr(kind, "SHORTHAND", None)
        if shorthand is not None and not isinstance(tree.value, dict | list | None):
            tree = Tree({shorthand: tree}, tree.line)
        if not isinstance(tree.value, dict):
            message = f"{_show(tree.value)} stands where a mapping should"
            return self.complain(
                tree, path, message, f"with {', '.join(list(fields_of(kind))[:4])}"
            )
        fields = fields_of(kind)
        made: dict[str, Any] = {}
        misspelt = set()
        sound = True
        for name, member in tree.value.items():
            if name not in fields:
                fix = near(name, fields)
                self.complain(member, (*path, name), f"unknown key {_show(name)}", fix)
                misspelt.add(fix)
                continue
            wanted, required = fields[name]
            value = self.make(member, wanted, (*path, name))
            if value is not FAULTY:
                made[name] = value
            elif required or holds_objects(wanted):
                sound = False
        for name in _required(kind):
            if name not in tree.value and _meant(name) not in misspelt:
                self.complain(tree, path, f"{_noun(kind)} lacks {name}")
                sound = False
        sound = sound and all(name in made for name in _required(kind))
        return kind(**made) if sound else FAULTY

    def _list(self, tree: Tree, kind: Any, path: Path) -> Any:
        if not isinstance(tree.value, list):
            if takes_scalar(kind) and not isinstance(tree.value, dict | None):
                value = self.make(tree, kind, path)
                return FAULTY if value is FAULTY else (value,)
            fix = "[] for none" if tree.value is None else "write [ ] or - in front"
            return self.complain(tree, path, f"{_show(tree.value)} stands where a list should", fix)
        made = [self.make(item, kind, (*path, i)) for i, item in enumerate(tree.value)]
        sound = tuple(value for value in made if value is not FAULTY)
        objects = isinstance(kind, type) and issubclass(kind, Model)
        return sound if objects or len(sound) == len(made) else FAULTY

    def _mapping(self, tree: Tree, kind: Any, path: Path) -> Any:
        if not isinstance(tree.value, dict):
            return self.complain(tree, path, f"{_show(tree.value)} stands where a mapping should")
        made = {k: self.make(v, kind, (*path, k)) for k, v in tree.value.items()}
        return FAULTY if FAULTY in made.values() else made

    def _union(self, tree: Tree, kinds: tuple[Any, ...], path: Path) -> Any:
        rest = [kind for kind in kinds if kind is not types.NoneType]
        if tree.value is None and len(rest) < len(kinds):
            return None
        for kind in rest[:-1]:
            if _fits(tree.value, kind):
                return self.make(tree, kind, path)
        if len(rest) > 1 and not _fits(tree.value, rest[-1]):
            wanted = " or ".join(map(_wanted, rest))
            fix = next(filter(None, (_plain_fix(tree.value, k) for k in rest)), "")
            return self.complain(tree, path, f"{_show(tree.value)} is not {wanted}", fix)
        return self.make(tree, rest[-1], path)

    def _literal(self, tree: Tree, choices: tuple[Any, ...], path: Path) -> Any:
        value = tree.value
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return value
        wanted = ("one of " if len(choices) > 1 else "") + ", ".join(map(str, choices))
        return self.complain(tree, path, f"{_show(value)} is not {wanted}", near(value, choices))

    def _scalar(self, tree: Tree, kind: Any, path: Path) -> Any:
        if isinstance(tree.value, dict | list):
            return self.complain(tree, path, f"{_show(tree.value)} is not {_wanted(kind)}")
        try:
            return decode(kind, tree.value)
        except Malformed as error:
            return self.complain(tree, path, error.message, error.fix)

    def _plain(self, tree: Tree, kind: type, path: Path) -> Any:
        value = tree.value
        if _has_surrogate(value):
            message = f"{ascii(value)[:60]} holds half a surrogate pair"
            return self.complain(tree, path, message, "write the character itself")
        if type(value) is kind:
            return value
        return self.complain(
            tree, path, f"{_show(value)} is not {_wanted(kind)}", _plain_fix(value, kind)
        )


def near(word: object, choices: typing.Iterable[object]) -> str:
    """`did you mean …?`, or all that is known."""
    import difflib

    known = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word)[:64], known, 1, 0.6)
    return _meant(close[0]) if close else f"known: {', '.join(known[:20])}"


def _meant(word: str) -> str:
    return f"did you mean {word}?"


def _fits(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    return type(value) is kind if kind in (str, int, bool) else True


def _wanted(kind: Any) -> str:
    words = {
        int: "a whole number",
        str: "text",
        bool: "true or false",
        IP: "an IP address",
        Prefix: "a prefix",
        Mac: "a MAC address",
        Vni: "a VNI",
        PortRange: "a port or range",
    }
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return words.get(kind, str(kind))


def _plain_fix(value: object, kind: Any) -> str:
    if kind is bool and isinstance(value, str):
        return {"yes": "write true", "on": "write true"}.get(
            value.lower(), "write false" if value.lower() in ("no", "off") else ""
        )
    if kind is str and isinstance(value, int | float):
        return f'quote it: "{_show(value)}"'
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"write {int(value)}"
    if kind is int and isinstance(value, str):
        bare = value.lstrip("0") or "0"
        if value.isascii() and bare.isdecimal() and len(bare) < 20:
            return f"write {bare}, without quotes or leading zeros"
        if re.fullmatch(r"[1-9]\d{0,8}[eE]\+?\d", value, re.ASCII):
            return f"write {int(float(value))}"
    return ""


def _required(kind: type[Model]) -> list[str]:
    return [name for name, (_, required) in fields_of(kind).items() if required]


def _noun(kind: type[Model]) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in kind.__name__).strip()
