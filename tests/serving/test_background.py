"""A thread of low priority beside another process of the same server, and an ordinary one without."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.background import NICE

ROOT = Path(__file__).resolve().parents[2]
# What a model process does: loads, and starts the threads that serve afterwards.
MODEL = """
import os, threading
from concurrent.futures import ThreadPoolExecutor
from serving.background import in_background

def priority():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

def inherited():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(priority).result()

print(in_background(lambda: (priority(), inherited())), priority(), inherited())
try:
    in_background(lambda: 1 // 0)
except ZeroDivisionError:
    print("raised")
"""
SERVER = """
import subprocess, sys
others = [subprocess.Popen(["sleep", "60"])]
if sys.argv[1] == "swap":
    others.append(subprocess.Popen([sys.executable, "-c", "import time; print(); time.sleep(60)"], stdout=-1))
    others[-1].stdout.readline()
subprocess.run([sys.executable, "-c", sys.argv[2]])
for one in others:
    one.kill()
"""


@pytest.mark.parametrize(("case", "while_loading"), [("first start", 0), ("swap", NICE)])
def test_only_loading_beside_a_process_that_serves_steps_back(case: str, while_loading: int) -> None:
    command = [sys.executable, "-c", SERVER, case, MODEL]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.splitlines() == [f"({while_loading}, {while_loading}) 0 0", "raised"]
