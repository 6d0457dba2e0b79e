"""YAML text to a `Tree`, with the traps of YAML 1.1 closed.

Plain scalars are null, true, false, decimal or 0x integers, decimal fractions, or text: `on`, `no`,
`010`, `1_000` and `10:20:30:40:50:55` stay text. Anchors, aliases, tags and further documents are
refused: what a document says stands where it says it.
"""

import re
from typing import Any

from dataplane.tree import MAX_DEPTH, MAX_VALUES, Complaint, Tree, too_deep, too_many

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


def plain_scalar(text: str) -> bool | int | float | str | None:
    """What an unquoted scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 16 if text.startswith("0x") else 10)
    return float(text) if _FLOAT.fullmatch(text) else text


def read(text: str) -> tuple[Tree, list[Complaint]]:
    """The tree, and what is wrong with it. Raises Complaint if it cannot be read at all."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        last = text.count("\n") + 1  # the parser may stand one behind it
        line = min(mark.line + 1, last) if mark else 0
        if "nesting depth" in str(error.problem):  # libyaml's own bound, met as it reads ahead
            raise too_deep(line) from None
        raise Complaint((), f"not YAML: {error.problem}", line=line) from None
    except yaml.YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0) or 0) + 1
        reason = getattr(error, "reason", "unreadable")
        raise Complaint((), f"not YAML: {reason}", line=line) from None
    if builder.root is None:
        raise Complaint((), "the document is empty", "it needs node: or nodes:", 1)
    return builder.root, builder.complaints


class _Builder:
    """Takes parser events one by one; never recurses, so depth and size are bounded by counting."""

    def __init__(self) -> None:
        self.root: Tree | None = None
        self.complaints: list[Complaint] = []
        self._open: list[Tree] = []
        self._keys: list[Tree | None] = []  # per open mapping: the key that waits for its value
        self._values = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        kind = type(event).__name__
        line = event.start_mark.line + 1
        if kind == "ScalarEvent":
            self._refuse_extras(event, line)
            quoted = not event.implicit[0]
            self._place(
                Tree(event.value if quoted else plain_scalar(event.value), line), event.value
            )
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._refuse_extras(event, line)
            tree = Tree({} if kind == "MappingStartEvent" else [], line)
            self._place(tree)
            self._open.append(tree)
            self._keys.append(None)
            if len(self._open) > MAX_DEPTH:
                raise too_deep(line)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._open.pop()
            self._keys.pop()
        elif kind == "AliasEvent":
            self._complain(line, f"alias *{event.anchor}", "write the value out")
            self._place(Tree(None, line))
        elif kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                raise Complaint((), "a second document (---)", "one document a file", line)

    def _complain(self, line: int, message: str, fix: str) -> None:
        self.complaints.append(Complaint((), f"{message} is not accepted", fix, line))

    def _refuse_extras(self, event: Any, line: int) -> None:
        if event.anchor is not None:
            self._complain(
                line, f"anchor &{event.anchor}", "write the value out where it is needed"
            )
        if event.tag is not None:
            self._complain(line, f"tag {event.tag}", "leave it out; quote what is text")

    def _place(self, tree: Tree, key: str | None = None) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise too_many(tree.line)
        if not self._open:
            self.root = tree
            return
        holder = self._open[-1].value
        if isinstance(holder, list):
            holder.append(tree)
        elif self._keys[-1] is None:
            self._keys[-1] = self._key(tree, key)
        else:
            self._member(holder, self._keys[-1], tree)  # type: ignore[arg-type]

    def _key(self, tree: Tree, text: str | None) -> Tree:
        if text is None:
            raise Complaint((), "a key is a list or mapping", "keys are words", tree.line)
        return Tree(text, tree.line)

    def _member(self, holder: dict[str, Tree], key: Tree, tree: Tree) -> None:
        name = str(key.value)
        if name in holder:
            self.complaints.append(
                Complaint(
                    (), f"key {name!r} stands twice", f"first in line {holder[name].line}", key.line
                )
            )
        tree.line = key.line
        holder[name] = tree
        self._keys[-1] = None
