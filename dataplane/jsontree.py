"""JSON text to a `Tree`: the slow way, taken only to say in which line a document is wrong."""

import json
import re

from dataplane.tree import MAX_DEPTH, MAX_VALUES, Complaint, Tree, too_deep, too_many

_TOKEN = re.compile(r'[ \t\r\n]*([{}\[\],:]|"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*"|[-+.\w]+)')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"null": None, "true": True, "false": False}


def read(text: str) -> tuple[Tree, list[Complaint]]:
    """The tree, and what is wrong with it. Raises Complaint if it cannot be read at all."""
    reader = _Reader(text)
    tree = reader.value(reader.next(), 1)
    reader.end()
    return tree, reader.complaints


class _Reader:
    def __init__(self, text: str) -> None:
        self.complaints: list[Complaint] = []
        self._text = text
        self._at = 0
        self._line = 1
        self._values = 0

    def next(self) -> str:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            raise self._stop(self._rest()[:20] or "end of text")
        self._line += self._text.count("\n", self._at, match.end())
        self._at = match.end()
        return match[1]

    def end(self) -> None:
        rest = self._rest()
        if rest:
            raise self._stop(rest[:20])

    def _rest(self) -> str:
        """What was not read yet, from its first character on."""
        rest = self._text[self._at :].lstrip(" \t\r\n")
        self._line += self._text.count("\n", self._at, len(self._text) - len(rest))
        return rest

    def value(self, token: str, depth: int) -> Tree:
        self._values += 1
        if self._values > MAX_VALUES:
            raise too_many(self._line)
        if depth > MAX_DEPTH:
            raise too_deep(self._line)
        if token == "{":
            return self._object(depth)
        if token == "[":
            return self._array(depth)
        return Tree(self._scalar(token), self._line)

    def _object(self, depth: int) -> Tree:
        members: dict[str, Tree] = {}
        tree = Tree(members, self._line)
        token = self.next()
        while token != "}":
            if token[0] != '"':
                raise self._stop(token)
            name, line = str(self._scalar(token)), self._line
            if (token := self.next()) != ":":
                raise self._stop(token)
            member = self.value(self.next(), depth + 1)
            if name in members:
                first = f"first in line {members[name].line}"
                self.complaints.append(Complaint((), f"key {name!r} stands twice", first, line))
            member.line = line
            members[name] = member
            token = self._after_comma("}")
        return tree

    def _array(self, depth: int) -> Tree:
        items: list[Tree] = []
        tree = Tree(items, self._line)
        token = self.next()
        while token != "]":
            items.append(self.value(token, depth + 1))
            token = self._after_comma("]")
        return tree

    def _after_comma(self, close: str) -> str:
        token = self.next()
        if token == close:
            return token
        if token != ",":
            raise self._stop(token)
        token = self.next()
        if token == close:
            raise self._stop(f",{close}")
        return token

    def _scalar(self, token: str) -> bool | int | float | str | None:
        if token in _WORDS:
            return _WORDS[token]
        if token[0] == '"':
            try:
                return str(json.loads(token))
            except ValueError:
                raise self._stop(token[:20]) from None
        number = _NUMBER.fullmatch(token)
        if number is None:
            raise self._stop(token[:20])
        return int(token) if number[2] is number[3] and len(token) <= 20 else float(token)

    def _stop(self, found: str) -> Complaint:
        return Complaint((), f"not JSON: unexpected {found!r}", line=self._line)
