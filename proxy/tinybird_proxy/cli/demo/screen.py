"""The demo's screen: a live picture on a terminal, a plain line now and then elsewhere, and the table at the end."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.box import ASCII, ROUNDED
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tinybird_proxy import health
from tinybird_proxy.cli.demo.figures import History, Status, Tally, sparkline
from tinybird_proxy.cli.demo.outcome import Outcome

_DRAW_EVERY_S = 0.25
_PRINT_EVERY_S = 2.0
_PANEL_WIDTH = 26
_CURVE_WIDTH = _PANEL_WIDTH - 4
_ALL_IS_WELL = health.overall([], phase="running", utilisation=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that is shown at one moment."""

    elapsed_s: float
    seconds: float | None
    tally: Tally
    status: Status | None
    history: History
    scene: str
    said: Sequence[str]
    wait_delay_s: float


class Screen:
    """Use it as a ``with`` block around the demo; `show` in it, `finish` after it."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        # FORCE_COLOR makes rich believe in a terminal: what is redirected must stay readable all the same.
        self.is_live = sys.stdout.isatty() and self._console.is_terminal and not self._console.is_dumb_terminal
        self.interval_s = _DRAW_EVERY_S if self.is_live else _PRINT_EVERY_S
        self._live = Live(console=self._console, screen=True, auto_refresh=False) if self.is_live else None

    def __enter__(self) -> "Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, view: View) -> None:
        """Draw ``view``, or print its line."""
        if self._live is not None:
            self._live.update(picture(view), refresh=True)
        else:
            self.say(plain_line(view))

    def say(self, text: str) -> None:
        """Print one line as it is."""
        self._console.print(Text(text), soft_wrap=True)

    def finish(self, outcome: Outcome) -> None:
        """Print what became of the rows."""
        table = Table(
            "Who counted", "What", box=ROUNDED if self._draws_boxes else ASCII, title="What became of the rows"
        )
        table.add_column("How many", justify="right")
        counter = ""
        for who, what, count in outcome.table():
            table.add_row("" if who == counter else who, what, count)
            counter = who
        self._console.print(table)
        style = "bold green" if outcome.exactly_once else "bold red"
        self._console.print(Text(outcome.sentence(), style=style), soft_wrap=True)

    @property
    def _draws_boxes(self) -> bool:
        return self._console.encoding.lower().startswith("utf")


def plain_line(view: View) -> str:
    """``view`` in one line of ASCII."""
    status, tally = view.status, view.tally
    parts = [f"{view.elapsed_s:5.0f} s", f"{tally.promised:,} requests accepted"]
    if status is not None:
        oldest = f" (oldest {status.buffer.oldest_age_s:.1f} s)" if status.buffer.oldest_age_s is not None else ""
        ratio = f", compressed {status.compression_ratio:.1f}x" if status.compression_ratio is not None else ""
        parts += [
            f"{status.buffer.rows:,} rows buffered{oldest}",
            f"{status.ledger.delivered:,} delivered in {status.upstream_request_count:,} requests{ratio}",
        ]
    if (latency := tally.latest_percentiles()) is not None:
        parts.append(f"p50 {latency[0] * 1e3:.1f} ms, p99 {latency[1] * 1e3:.1f} ms")
    if status is not None:
        parts.append(status.sentence)
    return "; ".join(parts)


def picture(view: View) -> RenderableType:
    """Fits 80 columns and 24 lines."""
    title = Text("tinybird-proxy demo", style="bold")
    until = "" if view.seconds is None else f" of {view.seconds:.0f} s"
    title.append(f"   {view.elapsed_s:.0f} s{until}   {view.scene}", style="not bold yellow")
    return Group(
        title,
        Columns([_client_panel(view), _proxy_panel(view), _tinybird_panel(view)], padding=(0, 0)),
        _became(view),
        Panel(_proxy_words(view), title="The proxy says", title_align="left", height=6),
        Panel(
            Text("\n".join(view.said), style="dim", no_wrap=True, overflow="ellipsis"),
            title="and logs",
            title_align="left",
            height=5,
        ),
        Text(
            f"The emulator answers wait=true after {view.wait_delay_s:g} s; Tinybird takes about 4 s. Ctrl-C ends.",
            style="dim",
            no_wrap=True,
        ),
    )


def _proxy_words(view: View) -> RenderableType:
    if view.status is None:
        return Text("It has not been asked yet.", style="dim")
    overall, *each = view.status.words
    style = "bold green" if overall == _ALL_IS_WELL else "bold yellow"
    return Group(Text(overall, style=style), *(Text(words) for words in each))


def _client_panel(view: View) -> Panel:
    tally, latency = view.tally, view.tally.latest_percentiles()
    waits = tally.wait_latencies
    rates = view.history.promised_per_s()
    return _panel(
        "Client",
        "cyan",
        {
            "accepted": f"{tally.promised:,}",
            "refused": f"{sum(tally.refused.values()):,}",
            "now": f"{rates[-1]:,.0f}/s" if rates else "-",
            "p50": f"{latency[0] * 1e3:.1f} ms" if latency else "-",
            "p99": f"{latency[1] * 1e3:.1f} ms" if latency else "-",
            "wait=true": f"{waits[-1]:.2f} s" if waits else "-",
        },
        rates,
    )


def _proxy_panel(view: View) -> Panel:
    status = view.status
    if status is None:
        return _panel("Proxy", "magenta", {}, [])
    ratio, age_s = status.compression_ratio, status.buffer.oldest_age_s
    return _panel(
        "Proxy",
        "magenta",
        {
            "rows buffered": f"{status.buffer.rows:,}",
            "oldest row": f"{age_s:.1f} s" if age_s is not None else "-",
            "rows lost": f"{sum(status.ledger.dropped.values()):,}",
            "compression": f"{ratio:.1f} x" if ratio is not None else "-",
        },
        view.history.buffered(),
    )


def _tinybird_panel(view: View) -> Panel:
    status = view.status
    if status is None:
        return _panel("Tinybird, emulated", "green", {}, [])
    replies = {f"replies {reply}": f"{count:,}" for reply, count in sorted(status.upstream_requests.replies.items())}
    return _panel(
        "Tinybird, emulated",
        "green",
        {
            "rows delivered": f"{status.ledger.delivered:,}",
            "requests": f"{status.upstream_request_count:,}",
            "wait=true takes": f"{view.wait_delay_s:g} s",
            **dict(list(replies.items())[:3]),
        },
        view.history.delivered_per_s(),
    )


def _panel(title: str, style: str, figures: dict[str, str], curve: Sequence[float]) -> Panel:
    grid = Table.grid(expand=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for name, value in figures.items():
        grid.add_row(name, Text(value, style="bold"))
    for _ in range(6 - len(figures)):
        grid.add_row("", "")
    return Panel(
        Group(grid, Text(sparkline(curve, _CURVE_WIDTH), style=style)),
        title=title,
        border_style=style,
        width=_PANEL_WIDTH,
    )


def _became(view: View) -> Text:
    if view.status is None or view.status.upstream_request_count == 0:
        return Text("")
    accepted, sent = view.tally.promised, view.status.upstream_request_count
    return Text(f"{accepted:,} requests became {sent:,}: {max(0, accepted - sent):,} saved.", style="bold")
