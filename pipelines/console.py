"""What a person sees of a local run: one line a step, progress bars, and nothing of the runner's chatter."""

import io
import re
import signal
import sys
import time
from typing import TextIO

from components.stage import FAILED
from tessera.secrets import hidden

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LOG = re.compile(r"^\d\d:\d\d:\d\d\.\d+ - [A-Z]+ - (.*)$")
# The executor's own log, which may follow a bar on one line because a bar ends without a line break.
_EXECUTOR = re.compile(r"\[KFP Executor .*$")
_STARTED = re.compile(r"Executing task '([\w-]+)'")
_ENDED = re.compile(r"Task '([\w-]+)' finished with status (\w+)")
_REUSED = re.compile(r"Task ([\w-]+) cache hit")
_BAR = re.compile(r"\d+%\|.*\|| \d+(it|batch|item|epoch)\w* \[")
_TRACEBACK = "Traceback (most recent call last):"
# The last line of a traceback begins at the margin: `KeyError: 'x'`, `package.Error: words`, `KeyboardInterrupt`.
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:: .*)?$")
# A shell names the signal that ended its command, alone on a line.
_SIGNALS = {signal.strsignal(one) for one in signal.valid_signals()}
_SPOKEN = re.compile(r"^(?P<stage>[a-z]+(-[a-z]+)*): (?P<text>.+)$")


class Console(io.TextIOBase):
    """Stands in for standard output while the pipeline runs.

    Every line goes, without secrets, to `log`; steps, progress bars and the steps' own messages go to `screen`.

    Attributes:
        reused: steps whose outputs came from an earlier run.
        failure: the message with which a step ended, if one did.
        uncaught: last line of the step's last traceback.
        signal: name of the signal that ended a step.
    """

    def __init__(self, log: TextIO, screen: TextIO) -> None:
        self.log, self.screen = log, screen
        self.reused: list[str] = []
        self.failure: str | None = None
        self.failed_step: str | None = None
        self.uncaught: str | None = None
        self.signal: str | None = None
        self._in_traceback = False
        self._step, self._since, self._rest, self._bar = "", 0.0, "", False

    def writable(self) -> bool:
        """A text stream that can be written to."""
        return True

    def write(self, text: str) -> int:
        """Take any piece of text; act on each finished line."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in map(hidden, lines):
            self.log.write(line + "\n")
            self._read(_ANSI.sub("", line))
        self.log.flush()
        return len(text)

    def _read(self, raw: str) -> None:
        line = _EXECUTOR.sub("", raw).strip()
        self._watch(raw.removeprefix("    ").rstrip(), line)
        told = _LOG.match(line)
        if told:
            self._runner_said(told[1])
        elif FAILED in line:
            said = line.split(FAILED, 1)[1]
            self.failure = said if self.failure is None else f"{self.failure}\n{said}"
        elif _BAR.search(line):
            self._show(f"    {line}", replace=True)
        elif _SPOKEN.match(line) and self._step and not line.startswith("http"):
            spoken = _SPOKEN.match(line)
            if spoken and spoken["stage"].replace("-", "") in self._step.replace("-", ""):
                self._show(f"    {spoken['text']}")

    def _watch(self, text: str, line: str) -> None:
        if line == _TRACEBACK:
            self._in_traceback = True
        elif self._in_traceback and _EXCEPTION.match(text):
            self.uncaught, self._in_traceback = line, False
        elif line.removesuffix(" (core dumped)") in _SIGNALS:
            self.signal = line

    def _runner_said(self, line: str) -> None:
        if started := _STARTED.search(line):
            self._step, self._since = started[1], time.monotonic()
            self.uncaught, self.signal = None, None
            self._show(f"  · {self._step} …", replace=True)
        elif ended := _ENDED.search(line):
            seconds = time.monotonic() - self._since
            good = ended[2] == "SUCCESS"
            self._show(f"  {'✓' if good else '✗'} {ended[1]:<18} {seconds:6.1f} s")
            if not good:
                self.failed_step = ended[1]
            self._step = ""
        elif reused := _REUSED.search(line):
            self.reused.append(reused[1])
            self._show(f"  ↺ {reused[1]:<18} reused from an earlier run")

    def _show(self, line: str, replace: bool = False) -> None:
        """Print a line; one with `replace` is overwritten by the next on a terminal, and left out of a file."""
        terminal = self.screen.isatty()
        if replace and not terminal and "…" in line:
            return
        start = "\r\x1b[K" if self._bar and terminal else ""
        end = "" if replace and terminal else "\n"
        self.screen.write(start + line[:140] + end)
        self.screen.flush()
        self._bar = replace


def plain(text: str) -> None:
    """Print to the real standard output."""
    print(text, file=sys.stdout, flush=True)
