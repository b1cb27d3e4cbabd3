"""The client as a downstream service has it: alone in an empty environment, against a real Triton and a real Feast."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feature_repo.server import FeatureServer
from serving.server import TritonServer
from tessera.decoding.recommender import Recommender

pytestmark = pytest.mark.integration
CLIENT = Path(__file__).resolve().parents[2] / "serving" / "client"

SCRIPT = """
import asyncio, dataclasses, json, sys
from importlib.metadata import distributions
import tessera_rec_client
from tessera_rec_client import AsyncFeatures, AsyncRecommender, Features, NotFound, Recommender

grpc, http, feast, history = sys.argv[1:4] + [sys.argv[4].split(",")]
plain = dataclasses.asdict
found = {"packages": sorted(one.metadata["Name"].lower() for one in distributions())}
found["file"] = tessera_rec_client.__file__

with Recommender(grpc, timeout=30) as client:
    found["grpc"] = plain(client.recommend(history, k=6))
with Recommender(http, "http", timeout=30, features_url=feast) as client:
    found["http"] = plain(client.recommend(user="ann", k=6))

async def concurrently():
    async with AsyncRecommender(grpc, timeout=30) as a, AsyncRecommender(http, "http", timeout=30) as b:
        answers = await asyncio.gather(*[one.recommend(history, k=6) for one in (a, b) * 4])
        async with AsyncRecommender(grpc, timeout=30, features_url=feast) as c:
            answers.append(await c.recommend(user="ann", k=6))
    async with AsyncFeatures(feast, timeout=30) as features:
        item, sid, user = await asyncio.gather(features.item("100"), features.sid("0_0_0"), features.user("ann"))
    return [plain(one) for one in answers], [plain(item), plain(sid), plain(user)]

found["async"], found["async_features"] = asyncio.run(concurrently())
with Features(feast, timeout=30) as features:
    found["features"] = [plain(features.item("100")), plain(features.sid("0_0_0")), plain(features.user("ann"))]
    found["bare"] = [plain(features.item("101")), plain(features.user("bob"))]
    missing = []
    for look_up in (lambda: features.item("nope"), lambda: features.sid("7_7_7"), lambda: features.user("eve")):
        try:
            look_up()
        except NotFound as error:
            missing.append(str(error))
    found["missing"] = missing
print(json.dumps(found, default=str))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment after `pip install serving/client`; the tests skip where packages cannot be fetched."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(CLIENT, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1"]
    reach = [*pip, "download", "--quiet", "--no-deps", "--dest", folder / "reach", "h11"]
    if subprocess.run(reach, capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")
    into = ["--python", folder / "env" / "bin" / "python", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, *into, folder / "source"], check=True)
    return folder / "env" / "bin" / "python"


@pytest.fixture(scope="module")
def found(python: Path, triton: TritonServer, features: FeatureServer) -> Any:
    arguments = [triton.grpc_url, triton.http_url, features.url, "103,117,104"]
    done = subprocess.run(
        [python, "-I", "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=120, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_installs_tritonclient_numpy_and_an_http_client_and_no_platform(found: Any, python: Path) -> None:
    heavy = {"torch", "feast", "mlflow", "kfp", "pandas", "pyarrow", "transformers", "tessera-rec", "aiohttp", "gevent"}
    assert {"tessera-rec-client", "tritonclient", "numpy", "httpx"} <= set(found["packages"])
    assert not heavy & set(found["packages"])
    assert found["file"].startswith(str(python.parents[1]))


def test_recommendations_answer_from_it(found: Any, engines: dict[str, Recommender]) -> None:
    answers = [found["grpc"], found["http"], *found["async"]]
    assert len(answers) == 11
    engine = engines[answers[0]["policy_version"]]
    expected = [(one.item_id, one.sid) for one in engine.recommend([["103", "117", "104"]], 6)[0]]
    for answer in answers:
        assert [(one["item_id"], one["sid"]) for one in answer["items"]] == expected
        assert (answer["policy_version"], answer["tokenizer_version"]) == (engine.policy_version, "tok-1")


def test_lookups_answer_from_it(found: Any) -> None:
    item, sid, user = found["features"]
    assert found["async_features"] == [item, sid, user]
    assert item == {
        "item_id": "100", "title": "Title 100", "brand": "acme", "categories": ["toys"], "image": "100.jpg",
        "caption": "A photo of 100", "motives": ["play"], "descriptors": ["for gardens", "gift"],
        "confidences": [0.5, None], "quality_score": 0.5,
        "sid": "0_0_0", "codes": [0, 0, 0], "tokenizer_version": "tok-1",
    }  # fmt: skip
    assert sid == {"sid": "0_0_0", "item_ids": ["100"], "tokenizer_version": "tok-1"}
    assert user["history"] == ["103", "117", "104"]
    assert user["top_k"] == {
        "items": [
            {"item_id": "100", "sid": "0_0_0", "score": -0.5}, {"item_id": "101", "sid": "1_0_1", "score": -1.5},
        ],
        "policy_version": "pol-1", "tokenizer_version": "tok-1", "computed_at": "2026-01-02 03:04:05+00:00",
        "stale": True,  # the history was published later
    }  # fmt: skip


def test_what_is_absent_is_none_or_empty_and_what_is_unknown_is_an_error(found: Any) -> None:
    item, user = found["bare"]
    assert (item["descriptors"], item["confidences"], item["quality_score"]) == ([], [], None)
    assert user["top_k"] is None
    assert [message.split(";")[0] for message in found["missing"]] == [
        "item 'nope' is not in the published catalogue",
        "no published item has the semantic ID 7_7_7",
        "user 'eve' has no published history",
    ]


def test_the_examples_of_its_readme_run(python: Path, triton: TritonServer, features: FeatureServer) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    places = {"8001": triton.grpc_url, "8000": triton.http_url, "6566": features.url}
    script = "\n".join(blocks)
    for port, place in places.items():
        script = script.replace(f"localhost:{port}", place)
    command = [python, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "('103', '117', '104')" in done.stdout
    assert "item 'no such item' is not in the published catalogue" in done.stdout
