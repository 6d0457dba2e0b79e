"""Putting a policy for all nodes into etcd, and hearing what became of it."""

import contextlib
import sys
import time

import msgspec
from msgspec.structs import asdict

from dataplane.errors import DataplaneError
from dataplane.etcd_policy.common import Answer
from dataplane.etcd_policy.common import read as read_common
from dataplane.flannel.access import Access
from dataplane.flannel.etcd import Client
from dataplane.tables import table
from dataplane.verbs.base import OK, PROBLEM, read, show

TURN = 0.05  # seconds between looks


def push(
    file: str, urls: tuple[str, ...], root: str, access: Access, wait: float, form: str
) -> int:
    """0 if no node refuses it, 1 if one does, 2 if it is none or etcd does not take it."""
    try:
        text, name = read(file)
        read_common(text, name)
        with contextlib.closing(Client(urls, access)) as client:
            revision = client.put(f"{root}/policy", text)
            answers = _answers(client, f"{root}/nodes/", revision, wait)
    except DataplaneError as error:
        print(error, file=sys.stderr)
        return 2
    if form == "json":
        nodes = {name: asdict(answer) for name, answer in answers.items()}
        show({"revision": revision, "nodes": nodes}, form)
    else:
        rows = [(name, _word(told, revision)) for name, told in sorted(answers.items())]
        print("\n".join([f"revision {revision}", *table(rows)]))
    return PROBLEM if any(answer.refused for answer in answers.values()) else OK


def _answers(client: Client, place: str, revision: int, wait: float) -> dict[str, Answer]:
    """By node, once all of them have said something of the revision, or the time is over."""
    deadline = time.monotonic() + wait
    while True:
        told: dict[str, Answer] = {}
        for item in client.list(place)[1]:
            with contextlib.suppress(msgspec.MsgspecError, ValueError):
                told[item.key.removeprefix(place)] = msgspec.json.decode(item.value, type=Answer)
        late = any(answer.revision < revision for answer in told.values())
        if time.monotonic() >= deadline or (told and not late):
            return told
        time.sleep(TURN)


def _word(answer: Answer, revision: int) -> str:
    if answer.revision < revision:
        return f"no answer; it has revision {answer.holds}"
    if answer.refused:
        return f"refused, revision {answer.holds} holds: {answer.refused}"
    return f"generation {answer.generation}"
