"""The state directory: what a node has committed, so that a restart finds it. One process has it.

`policy.json` is replaced whole (written beside it, flushed to the disk, renamed), so at any moment
it is one generation's, never half of it. That is done before the engine commits: what may fail
comes first. The file of before stays beside it until the next one is written.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import msgspec

from dataplane import ipam
from dataplane.convert import decode
from dataplane.document import loads
from dataplane.encoder import Encoder
from dataplane.errors import DocumentError, Fault, PortError, StorageError
from dataplane.ipam import Released
from dataplane.model import Node
from dataplane.shares import Share, Shares, compose

FORMAT = 1
POLICY, LOCK = "policy.json", "lock"
FRESH, BEFORE = f".{POLICY}", f".{POLICY}.before"


class Saved(NamedTuple):
    """The policy as it was given, its generation, the addresses that it has released, and what
    front doors have added; of one that begins in the place of another, that one as a whole."""

    generation: int
    node: Node
    released: Released = MappingProxyType({})
    shares: Shares = MappingProxyType({})
    before: Node | None = None

    def with_document(self, node: Node) -> "Saved":
        """The next generation: that is the document's policy, and all else is kept, addresses that
        it does not name among it. Raises DocumentError."""
        before = compose(self.node, self.shares)
        given = ipam.missing(compose(node, self.shares), before, self.released)
        own, shares = ipam.filled(node, given), ipam.filled_shares(self.shares, given)
        released = ipam.after(self.released, before, compose(own, shares))
        return Saved(self.generation + 1, own, released, shares, before)


class StateDir:
    """Owns the directory while it lives; a context manager.

    Raises PortError where the directory cannot be used, or another process has it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PortError(f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            fix = "name another --state"
            raise PortError(f"{path}: another process has it ({fix})") from error
        self._begin(path, lock)

    def _begin(self, path: Path, lock: int) -> None:
        self.path, self._lock, self._encoder = path, lock, Encoder()
        self._flusher = ThreadPoolExecutor(1, "state")

    @classmethod
    def inherited(cls, path: str | os.PathLike[str], lock: int) -> Self:
        """The directory whose lock this process inherited."""
        made = cls.__new__(cls)
        made._begin(Path(path), lock)
        return made

    def fileno(self) -> int:
        """Of the lock."""
        return self._lock

    def close(self) -> None:
        """Again is harmless."""
        self._flusher.shutdown()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> Saved | None:
        """What was committed last; None where nothing was. Raises DocumentError."""
        place = self.path / POLICY
        try:
            state = json.loads(place.read_bytes())
            if state["format"] != FORMAT:
                message = f"has format {state['format']}, not {FORMAT}"
                raise _fault(place, message, "it is of another version")
            generation, policy = int(state["generation"]), state["policy"]
            released = {name: tuple(each) for name, each in state.get("released", {}).items()}
            shares = shares_of(state.get("shares", {}))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _fault(place, f"cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _fault(place, "is no saved state", "move it away and start again") from error
        node = loads(json.dumps(policy), str(place)).node
        if node is None:
            raise _fault(place, "is not of one node")
        return Saved(generation, node, released, shares)

    @contextlib.contextmanager
    def saving(self, saved: Saved) -> Iterator[Callable[[], None]]:
        """Writes beside the state of before. Before the block commits it calls what it gets: the
        disk has the new state then. If the block raises, that of before is put back. Raises
        StorageError where the disk takes no more, and likewise."""
        place, fresh, before = (self.path / name for name in (POLICY, FRESH, BEFORE))
        with contextlib.ExitStack() as undo:
            undo.callback(_quietly, _flush_directory, self.path)
            undo.callback(_quietly, fresh.unlink)
            with self._telling():
                before.unlink(missing_ok=True)
                flushing = self._flusher.submit(_flush, _written(fresh, self._text(saved)))
            undo.callback(wait, (flushing,))

            def settle() -> None:
                with self._telling():
                    flushing.result()
                    if place.exists():
                        os.link(place, before)
                        undo.callback(_quietly, os.replace, before, place)
                    else:
                        undo.callback(_quietly, place.unlink)
                    os.replace(fresh, place)
                    _flush_directory(self.path)

            yield settle
            undo.pop_all()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Inside the block the disk may refuse."""
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}: nothing is applied") from error

    def _text(self, saved: Saved) -> bytes:
        head = {"format": FORMAT, "generation": saved.generation, "released": dict(saved.released)}
        policy, shares = self._encoder(saved.node, saved.shares)
        begin = json.dumps(head)[:-1].encode()
        return b'%b, "shares": %b, "policy": %b}\n' % (begin, shares, policy)


def shares_of(value: Any) -> dict[str, Share]:
    """Of decoded JSON. Raises ValueError."""
    return msgspec.convert(value, dict[str, Share], dec_hook=decode)


def _quietly(action: Callable[..., object], *arguments: object) -> None:
    """It is tried."""
    with contextlib.suppress(OSError):
        action(*arguments)


def _written(path: Path, data: bytes) -> int:
    """Its descriptor."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
    except BaseException:
        os.close(file)
        raise
    return file


def _flush_directory(path: Path) -> None:
    _flush(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _flush(file: int) -> None:
    """And closes it."""
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _fault(place: Path, message: str, fix: str = "") -> DocumentError:
    return DocumentError((Fault(str(place), 0, "$", message, fix),))
