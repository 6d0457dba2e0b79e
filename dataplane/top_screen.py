"""The live screen of `dataplane top`."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Input, Sparkline, Static

from dataplane import top
from dataplane.errors import DataplaneError

HISTORY = 120  # moments that the lines show
ROWS = 50
Read = Callable[[Sequence[str]], top.Reading]


class TopScreen(App[None]):
    """Reads on a thread, one reading after the other; a node that is gone may come back."""

    CSS = """
    #head { height: 1; text-style: bold; }
    #lines { height: 3; }
    #lines Static { width: auto; padding: 1 1 0 0; }
    #lines Sparkline { width: 1fr; height: 2; margin: 0 1 0 0; }
    #dropped { color: $error; }
    #dropped .sparkline--max-color { color: $error; }
    #dropped .sparkline--min-color { color: $error 40%; }
    DataTable { height: 1fr; scrollbar-size-horizontal: 0; }
    #busiest { height: 2fr; }
    Input { display: none; height: 3; }
    Input.asked { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("p", "pause", "Pause"),
        ("slash", "filter", "Filter flows"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, read: Read, seconds: float, filters: Sequence[str] = ()) -> None:
        super().__init__()
        self._read, self._seconds, self._wanted = read, seconds, list(filters)
        self._before: top.Reading | None = None
        self._paused, self._said = False, "dataplane top"
        self._packets: deque[float] = deque([0.0], HISTORY)
        self._dropped: deque[float] = deque([0.0], HISTORY)
        self.moments = 0

    def compose(self) -> ComposeResult:
        yield Static(self._said, id="head", markup=False)
        with Horizontal(id="lines"):
            yield Static("rx")
            yield Sparkline([0], id="packets")
            yield Static("drop")
            yield Sparkline([0], id="dropped")
        for name in top.TABLES:
            yield DataTable(id=name, cursor_type="none", zebra_stripes=True)
        yield Input(" ".join(self._wanted), placeholder="ip=10.1.0.0/16 proto!=udp port=53,80")
        yield Footer()

    def on_mount(self) -> None:
        for name, columns in top.TABLES.items():
            self._table(name).add_columns(*(column.title for column in columns))
        self._next()

    def _table(self, name: str) -> "DataTable[str]":
        return self.query_one(f"#{name}", DataTable)

    # ---- readings ------------------------------------------------------------------------------

    def _next(self) -> None:
        self.run_worker(self._look, thread=True, exit_on_error=True)

    def _look(self) -> None:
        """On a thread of its own."""
        try:
            reading = self._read(tuple(self._wanted))
        except DataplaneError as error:
            self.call_from_thread(self._failed, str(error))
        else:
            self.call_from_thread(self._looked, reading)

    def _failed(self, why: str) -> None:
        self._tell(why)
        self._before = None
        self.set_timer(self._seconds, self._next)

    def _looked(self, reading: top.Reading) -> None:
        if self._before is not None and not self._paused:
            self._show(top.moment(self._before, reading))
        self._before = reading
        self.set_timer(self._seconds, self._next)

    def _show(self, now: dict[str, Any]) -> None:
        self.moments += 1
        self._tell(f"{now['node']}  {top.head(now)}")
        for name, history, value in (
            ("packets", self._packets, now["rx"]["packets"]),
            ("dropped", self._dropped, now["dropped"]),
        ):
            history.append(value)
            self.query_one(f"#{name}", Sparkline).data = list(history)
        for name in top.TABLES:
            shown = self._table(name)
            shown.clear()
            shown.add_rows(top.rows(name, now, ROWS))

    def _tell(self, text: str) -> None:
        self._said = text
        self.query_one("#head", Static).update("paused  " * self._paused + text)

    # ---- keys ----------------------------------------------------------------------------------

    def action_pause(self) -> None:
        self._paused = not self._paused
        self._tell(self._said)

    def action_filter(self) -> None:
        asked = self.query_one(Input)
        asked.add_class("asked")
        asked.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._wanted = event.value.split()
        self._before = None
        event.input.remove_class("asked")
        self.set_focus(None)
