"""`tessera submit` against a small server that speaks the part of Kubeflow's API that is used."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kfp import client as kfp_client

from pipelines.cli import main
from pipelines.submission import TOKEN, parameters
from tessera.config import Settings, from_json

API = "/apis/v2beta1"


@dataclass
class Kubeflow:
    """Experiments, runs and recurring runs in memory; a request without the token is refused."""

    token: str = "let-me-in"
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    experiments: list[dict[str, Any]] = field(default_factory=list)
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    url: str = ""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        kind, _, key = path.removeprefix(f"{API}/").partition("?")[0].partition("/")
        if kind == "healthz":
            return 200, {"multi_user": True}
        if kind == "experiments" and method == "GET":
            return 200, {"experiments": self.experiments}
        if kind == "experiments":
            self.experiments.append(body | {"experiment_id": "e-1"})
            return 200, self.experiments[-1]
        if kind == "runs":
            return 200, body | {"run_id": "r-1"}
        if kind == "recurringruns" and method == "GET":
            return 200, {"recurringRuns": list(self.schedules.values())}
        if kind == "recurringruns" and method == "POST":
            made = body | {"recurring_run_id": f"s-{len(self.requests)}"}
            self.schedules[made["recurring_run_id"]] = made
            return 200, made
        return 200, self.schedules.pop(key, {})

    def posted(self, kind: str) -> list[Any]:
        return [body for method, path, body in self.requests if method == "POST" and path == f"{API}/{kind}"]


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    state = Kubeflow()

    class Handler(BaseHTTPRequestHandler):
        def do_any(self) -> None:
            text = self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.loads(text) if text else None
            allowed = self.headers.get("authorization") == f"Bearer {state.token}"
            status, answer = state.answer(self.command, self.path, body) if allowed else (401, {"error": "who?"})
            state.requests.append((self.command, self.path, body))
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = do_any

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setenv(kfp_client.KF_PIPELINES_SA_TOKEN_ENV, str(tmp_path / "projected"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


def test_a_run_with_a_token(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOKEN, kubeflow.token)
    main(["submit", "promotion", f"--endpoint={kubeflow.url}/", "--source=parquet", "--path=/mnt/tessera/data",
          "--parameters", "version", "3", "why", "a new season"])  # fmt: skip
    assert f"run r-1 of tessera-promotion started at {kubeflow.url}/." in capsys.readouterr().out
    (experiment,) = kubeflow.experiments
    assert (experiment["display_name"], experiment["namespace"]) == ("tessera", "tessera")
    (run,) = kubeflow.posted("runs")
    assert run["service_account"] == "tessera-pipelines"
    assert re.fullmatch(r"tessera-promotion \d{4}-\d\d-\d\d \d\d:\d\d", run["display_name"])
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "tessera-promotion"
    assert run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]
    given = run["runtime_config"]["parameters"]
    assert (given["version"], given["why"], given["home"]) == ("3", "a new season", "/mnt/tessera/home")
    told = from_json(given["ingest_settings"])
    assert (told.source, told.path) == ("parquet", Path("/mnt/tessera/data"))
    assert kubeflow.token not in json.dumps(run)


def test_a_schedule_by_service_account_replaces_the_one_before(
    kubeflow: Kubeflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "projected").write_text(kubeflow.token + "\n")
    kubeflow.schedules["other"] = {"recurring_run_id": "other", "display_name": "tessera-training"}
    command = ["submit", "refresh", f"--endpoint={kubeflow.url}"]
    main([*command, "--cron=0 3 * * *"])
    main([*command, "--cron=30 4 * * 1"])
    assert "runs tessera-refresh at '30 4 * * 1' (UTC)." in capsys.readouterr().out
    kept = {one["display_name"]: one for one in kubeflow.schedules.values()}
    assert set(kept) == {"tessera-training", "tessera-refresh"}
    assert len(kubeflow.schedules) == 2
    refresh = kept["tessera-refresh"]
    assert refresh["trigger"]["cron_schedule"]["cron"] == "0 30 4 * * 1"
    assert (refresh["no_catchup"], refresh["max_concurrency"]) == (True, 1)
    assert from_json(refresh["runtime_config"]["parameters"]["ingest_settings"]).catalogue.k_core == 0
    assert "shards" not in refresh["runtime_config"]["parameters"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["refresh", "--cron=0 3 * *"], "the schedule '0 3 * *' has 4 fields; write five"),
        (["refresh"], "refused (401 Unauthorized). Give a token in TESSERA_KFP_TOKEN"),
        (["refresh", "--endpoint=http://127.0.0.1:9"], "no Kubeflow Pipelines answers at http://127.0.0.1:9"),
        (["promotion", "--parameters", "versoin", "3"], "has no free parameter 'versoin'; it has version, who, why."),
        (["precompute", "--parameters", "k", "many"], "parameter k is 'many', which is no integer; say it"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_submitted(
    kubeflow: Kubeflow, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = [] if any(one.startswith("--endpoint") for one in arguments) else [f"--endpoint={kubeflow.url}"]
    with pytest.raises(SystemExit) as ended:
        main(["submit", *arguments, *endpoint])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert kubeflow.posted("runs") == kubeflow.posted("recurringruns") == []


def test_runs_of_other_settings_keep_their_checkpoints_apart() -> None:
    def work(seed: int) -> str:
        return str(parameters("training", Settings(seed=seed), {})["work"])

    assert work(0) == work(0) != work(1)
    assert work(0).startswith("/mnt/tessera/work/training-")


def test_a_label_of_nodes_without_a_value_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compile", "training", "-o", str(tmp_path / "one.yaml"), "--cluster.gpu-nodes", "accelerator"])
    assert "the label of nodes 'accelerator' has no value" in capsys.readouterr().err
