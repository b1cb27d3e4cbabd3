"""Processes whose names the system has cut."""

import os
import subprocess
import sys
from pathlib import Path

from serving.processes import Child, children

ROOT = Path(__file__).resolve().parents[2]
NAMED = """
from pathlib import Path
Path("/proc/self/comm").write_text("\N{LATIN SMALL LETTER E WITH ACUTE}" * 10)  # 15 bytes are kept: seven and a half
from serving.processes import siblings
print([(one.pid, ascii(one.name)) for one in siblings()], flush=True)
input()
"""


def test_a_name_that_is_cut_amid_a_character() -> None:
    started = []
    try:
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-c", NAMED], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            started.append(process)
            assert process.stdout is not None
            said = process.stdout.readline().strip()
        first = started[0].pid
        name = "\u00e9" * 7 + "\ufffd"
        assert said == str([(first, ascii(name))])
        assert Child(first, name) in children(os.getpid())
    finally:
        for process in started:
            process.kill()
            process.communicate()
