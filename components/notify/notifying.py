"""One sentence about how a run ended: in the log, and at a webhook where one is configured."""

import json
import os
import urllib.request

TIMEOUT_S = 10.0
URL = "TESSERA_NOTIFY_URL"


def run(pipeline: str, state: str, error: str, job: str) -> str:
    """Print the sentence and post it as `{"text": ...}`, which chat services take, to the URL in TESSERA_NOTIFY_URL.

    A webhook that does not answer is said in the log; it never makes a good run a bad one.

    Args:
        state: SUCCEEDED, FAILED or CANCELLED.
        job: the run, as Kubeflow names it.
    """
    reason = f": {' '.join(error.split())}" if error else ""
    text = f"{pipeline} {state.lower()} ({job}){reason}"
    print(text, flush=True)
    if url := os.environ.get(URL):
        body = json.dumps({"text": text}).encode("utf-8")
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
        except (OSError, ValueError) as refused:
            # Not the URL: whoever knows a chat's webhook can write there.
            print(f"the webhook in {URL} was not told ({type(refused).__name__}).", flush=True)
    return text
