"""Start Triton as the manifests do, ask it for recommendations over loopback, and have it load a release anew."""

import os
import secrets
import subprocess
import sys
import time

import httpx
from shop import WORK

from serving.control import VARIABLE, key_of
from serving.model_repository import export
from serving.probe import ask, load
from tessera.bundle import load_manifest
from tessera.errors import ServiceError

URL, repository = "http://127.0.0.1:8000", WORK / "models"
export(WORK / "policy", repository)
os.environ[VARIABLE] = secrets.token_urlsafe(32)
triton = subprocess.Popen(
    [
        "tritonserver", f"--model-repository={repository}", "--model-control-mode=explicit", "--load-model=tessera",
        "--disable-auto-complete-config", "--exit-timeout-secs=5",
    ]
)  # fmt: skip
try:
    deadline = time.monotonic() + 120
    while triton.poll() is None and time.monotonic() < deadline:
        try:
            served = ask(URL)
            break
        except ServiceError:
            time.sleep(0.5)
    else:
        sys.exit("Triton did not answer")
    assert served.policy_version == load_manifest(WORK / "policy", "policy").version
    refused = httpx.post(f"{URL}/v2/repository/models/tessera/load", json={}, trust_env=False)
    assert refused.status_code == 403, refused.text
    load(URL, key_of(repository))
    subprocess.run([sys.executable, "-m", "serving.probe", URL], check=True)
    subprocess.run([sys.executable, "-m", "serving.sync", "--help"], check=True, capture_output=True)
finally:
    triton.terminate()
    triton.wait(30)
