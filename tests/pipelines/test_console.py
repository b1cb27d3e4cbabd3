"""The console: from a runner's log to what a person reads."""

import io
from pathlib import Path

import pytest

from components.stage import FAILED
from pipelines.console import Console

# As kfp.local writes it: colours, its own log, the executor's log, a step's messages, bars that end without a break.
STEP = """\
10:55:04.698 - INFO - Running pipeline: \x1b[95m'tessera-training'\x1b[0m
--------------------------------------------------------------------------------
10:55:04.707 - INFO - Executing task \x1b[96m'caption'\x1b[0m
10:55:04.707 - INFO - Streamed logs:

    [KFP Executor 2026-11-21 10:55:04,782 INFO]: Looking for component `caption`
            "uri": "/runs/one/artifacts/caption/captions",
    caption: the embedded provider answers
    someone-else: not of this step
    caption:   0%|          | 0/120 [00:00<?, ?item/s]
    caption:  50%|█████     | 60/120 [00:04<00:04, 14.07item/s]
    caption: 100%|██████████| 120/120 [00:08<00:00, 14.07item/s][KFP Executor 2026-11-21 10:55:12,962 INFO]: Wrote
10:55:13.204 - INFO - Task \x1b[96m'caption'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
10:55:13.205 - INFO - Task \x1b[96m'caption'\x1b[0m outputs:
    captions: Dataset( name='captions',
"""
REUSED = "10:55:14.000 - INFO - Task ingest cache hit (key=0123456789ab); skipping execution.\n"
REFUSED = f"""\
10:55:13.206 - INFO - Executing task \x1b[96m'gate-catalogue'\x1b[0m
{FAILED}the catalogue gate refused the data, 1 of 9 checks failed:
    [KFP Executor 2026-11-21 10:55:13,255 INFO]: something between
{FAILED}- expect_text_not_to_be_blank (items.title): 1 of 6 rows; rows b2: ???
{FAILED}See the Data Docs, /runs/one/docs/index.html; correct these rows and run again.
10:55:14.700 - INFO - Task \x1b[96m'gate-catalogue'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(text: str, screen: io.StringIO, piece: int = 7) -> tuple[Console, str]:
    """Feed `text` in pieces, as a pipe would."""
    log = io.StringIO()
    console = Console(log, screen)
    for start in range(0, len(text), piece):
        console.write(text[start : start + piece])
    return console, log.getvalue()


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_a_file_gets_a_line_a_step_and_the_bars(piece: int) -> None:
    screen = io.StringIO()
    console, log = watch(STEP, screen, piece)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "    the embedded provider answers"
    assert [line.strip()[:13] for line in lines[1:4]] == ["caption:   0%", "caption:  50%", "caption: 100%"]
    assert lines[4].startswith("  ✓ caption")
    assert lines[4].endswith(" s")
    assert len(lines) == 5
    assert "KFP" not in screen.getvalue()
    assert log == STEP  # nothing is lost: the log has it all
    assert console.failure is None
    assert console.failed_step is None


def test_a_terminal_gets_bars_in_one_place() -> None:
    screen = Terminal()
    watch(STEP, screen)
    text = screen.getvalue()
    assert "  · caption …" in text
    assert text.count("\n") == 2  # the message and the finished step; all else was drawn over
    # What is left when each "\r\x1b[K" has wiped its line.
    shown = [line.rsplit("\r\x1b[K", 1)[-1] for line in text.split("\n")]
    assert shown[0] == "    the embedded provider answers"
    assert shown[1].startswith("  ✓ caption")
    assert shown[2] == ""


def test_reused_steps_are_named_and_shown() -> None:
    screen = io.StringIO()
    console, _ = watch(REUSED + STEP, screen)
    assert console.reused == ["ingest"]
    assert "  ↺ ingest             reused from an earlier run\n" in screen.getvalue()


def test_a_failure_keeps_every_line_of_its_message() -> None:
    screen = io.StringIO()
    console, _ = watch(STEP + REFUSED, screen)
    assert console.failed_step == "gate-catalogue"
    assert console.failure is not None
    assert console.failure.splitlines() == [
        "the catalogue gate refused the data, 1 of 9 checks failed:",
        "- expect_text_not_to_be_blank (items.title): 1 of 6 rows; rows b2: ???",
        "See the Data Docs, /runs/one/docs/index.html; correct these rows and run again.",
    ]
    assert "  ✗ gate-catalogue" in screen.getvalue()
    assert FAILED not in screen.getvalue()  # it is for the end, where the person looks


def test_long_lines_are_cut_and_the_log_is_flushed_as_it_comes(tmp_path: Path) -> None:
    screen, path = io.StringIO(), tmp_path / "run.log"
    with path.open("w", encoding="utf-8") as log:
        console = Console(log, screen)
        assert console.writable()
        console.write("10:55:04.707 - INFO - Executing task 'caption'\n")
        console.write(f"caption: {'long ' * 100}\nhalf a li")
        assert path.read_text(encoding="utf-8").count("\n") == 2
        console.write("ne\n")
        assert path.read_text(encoding="utf-8").endswith("half a line\n")
    assert max(map(len, screen.getvalue().splitlines())) == 140
