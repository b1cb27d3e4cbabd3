"""Ten thousand malformed requests against the real server, which must refuse each and answer a good one afterwards."""

import http.client
import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.server import TritonServer

pytestmark = pytest.mark.integration
REQUESTS, THREADS, TIMEOUT_S = 10_000, 4, 30
PATH = "/v2/models/tessera/infer"
NAMES = (
    "history", "history_ids", "user_id", "k", "exclude", "allow", "include_history", "diversity", "probe", "nonsense",
    "",
)  # fmt: skip
TYPES = ("BYTES", "INT64", "INT32", "BOOL", "FP32", "FP64", "UINT8", "", "bytes", 7, None)
TEXTS = ("100", "", "a\x00b", "\x1b[31m", "\u202e", "\ud800", "é" * 300, "x" * 70_000, '"]}', "../etc", "NaN", "\r\n")
NUMBERS = (0, -1, 1, 61, 2**31 - 1, 2**31, -(2**31), 2**63, -(2**63) - 1, 1e308, -0.5, float("nan"), float("inf"))
Body = bytes


def text_input(name: str, values: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [1, len(values)], "data": values}


def good() -> dict[str, Any]:
    k = {"name": "k", "datatype": "INT32", "shape": [1, 1], "data": [5]}
    return {"inputs": [text_input("history", ["103", "117"]), k]}


def scalar(rng: random.Random) -> Any:
    return rng.choice([rng.choice(TEXTS), rng.choice(NUMBERS), None, True, [], {}, [[1]], {"a": "b"}])


def shape(rng: random.Random, datatype: str) -> Any:
    # Servers of before April 2025 allocate whatever a numeric shape claims and end where there is not so much
    # (triton-inference-server/server#8174, #8676); the embedded one is such a server. See serving/README.md.
    large = [2**31, 2**62] if datatype == "BYTES" else [1000]
    few = [rng.choice([-1, 0, 1, 2, 65, *large, 1.5, "1", None]) for _ in range(rng.randrange(5))]
    return rng.choice([few, few, [1, 2], rng.choice(NUMBERS), "1,2", None, {"0": 1}])


def wrong_field(rng: random.Random) -> Any:
    """One field of one input is something else, or missing."""
    body = good()
    one = rng.choice(body["inputs"])
    field = rng.choice(["name", "datatype", "shape", "data"])
    if rng.random() < 0.15:
        del one[field]
    elif field == "name":
        one["name"] = rng.choice([*NAMES, 3, None])
    elif field == "datatype":
        one["datatype"] = rng.choice(TYPES)
    elif field == "shape":
        one["shape"] = shape(rng, one["datatype"])
    else:
        one["data"] = rng.choice([scalar(rng), [scalar(rng) for _ in range(rng.randrange(6))]])
    return body


def odd_inputs(rng: random.Random) -> Any:
    """Any set of inputs, each well-formed enough to pass for one."""
    inputs = []
    for name in rng.choices(NAMES, k=rng.randrange(6)):
        rows, columns = rng.randrange(4), rng.randrange(4)
        kind = rng.choice(["BYTES", "INT64", "INT32", "BOOL"])
        pool: Any = TEXTS if kind == "BYTES" else [True, False] if kind == "BOOL" else [-5, 0, 3, 100, 2**31 - 1]
        values = [rng.choice(pool) for _ in range(rows * columns)]
        inputs.append({"name": name, "datatype": kind, "shape": [rows, columns], "data": values})
    return {"inputs": inputs}


def odd_values(rng: random.Random) -> Any:
    """Right types, absurd values."""
    body = good()
    choice = rng.randrange(4)
    if choice == 0:
        body["inputs"][1]["data"] = [rng.choice([0, -1, -(2**31), 2**31 - 1, 61, 501])]
    elif choice == 1:
        body["inputs"][0] = text_input("history", rng.choices(TEXTS[1:], k=rng.randrange(1, 9)))
    elif choice == 2:
        body["inputs"][0] = text_input("user_id", [rng.choice(TEXTS)])
    else:
        body["inputs"].append(text_input(rng.choice(["allow", "exclude", "user_id"]), rng.choices(TEXTS, k=3)))
    return body


def odd_around(rng: random.Random) -> Any:
    """Junk beside the inputs: parameters, outputs, id."""
    body = good()
    keys = ["timeout", "priority", "traffic", "binary_data_output", "shared_memory_region", "sequence_id", "triton_x"]
    choice = rng.randrange(5)
    if choice == 0:
        body["parameters"] = {key: scalar(rng) for key in rng.sample(keys, 3)}
    elif choice == 1:
        body["inputs"][0]["parameters"] = {
            "shared_memory_region": "r", "shared_memory_byte_size": rng.choice(NUMBERS), "binary_data_size": scalar(rng)
        }  # fmt: skip
    elif choice == 2:
        body["outputs"] = rng.choice([scalar(rng), [{"name": rng.choice(TEXTS)}], [{"name": "sids"}, scalar(rng)]])
    elif choice == 3:
        body["id"] = scalar(rng)
    else:
        body = {rng.choice(["inputs", "input", ""]): scalar(rng)}
    return body


def nested(rng: random.Random, deepest: int = 3_000) -> Body:
    """Brackets, closed or not, in several places."""
    depth, start, end = rng.randrange(2, deepest), *rng.choice([("[", "]"), ('{"a":', "}")])
    deep = start * depth + "1" + end * rng.choice([depth, 0, depth - 1])
    field = rng.choice(["data", "shape", "parameters", "name"])
    shell = f'{{"inputs":[{{"name":"history","datatype":"BYTES","shape":[1,1],"{field}":%s}}]}}'
    return rng.choice(["%s", '{"inputs":%s}', '{"x":%s,"inputs":[]}', shell]).replace("%s", deep).encode()


def broken_text(rng: random.Random) -> Body:
    """No JSON: cut, spoilt, another encoding, random bytes."""
    raw = bytearray(json.dumps(good()).encode(rng.choice(["utf-8", "utf-16", "utf-32"])))
    if rng.random() < 0.4:
        return bytes(raw[: rng.randrange(len(raw))])
    for _ in range(rng.randrange(1, 6)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return rng.choice([bytes(raw), rng.randbytes(rng.randrange(200)), b"", b"null", b'"inputs"', b"[]", b"1e999"])


KINDS: tuple[tuple[Callable[[random.Random], Any], int], ...] = (
    (wrong_field, 30), (odd_inputs, 25), (odd_values, 15), (odd_around, 15), (nested, 8), (broken_text, 7),
)  # fmt: skip


def request(rng: random.Random) -> tuple[str, Body, dict[str, str]]:
    """Path, body and headers of one malformed request."""
    (kind,) = rng.choices([one for one, _ in KINDS], [weight for _, weight in KINDS])
    made = kind(rng)
    body = made if isinstance(made, bytes) else json.dumps(made).encode("utf-8", "surrogatepass")
    path, headers = PATH, {}
    if rng.random() < 0.05:
        path = f"/v2/models/{rng.choice(['tessera/versions/99', 'tessera/versions/x', '%00', 'x' * 2_000])}/infer"
    if rng.random() < 0.05:
        headers["Inference-Header-Content-Length"] = str(rng.choice([0, -1, len(body), len(body) + 9, 2**63, "x"]))
    return path, body, headers


def heavy() -> list[Body]:
    """What a caller may send who wants to bring the server down; a few are enough."""
    million = 1_000_000
    long = [text_input("history", ["100"] * million), text_input("exclude", ["x" * 20] * million)]
    numbers = {"name": "history_ids", "datatype": "INT64", "shape": [1, million], "data": [103] * million}
    rows = {"name": "history", "datatype": "BYTES", "shape": [64, 9_999], "data": ["nobody"] * 64 * 9_999}
    inputs = ([long[0]], [text_input("history", ["103"]), long[1]], [numbers], [rows])
    bodies = [json.dumps({"inputs": one}).encode() for one in inputs]
    deep = [b"[" * million, b'{"a":' * million, b'{"inputs":' + b"[" * million + b"]" * million + b"}"]
    shell = b'{"inputs":[{"name":"history","datatype":"BYTES","shape":[1,1],"data":%s}]}'
    return [*bodies, *deep, shell % (b"[" * 100_000 + b"]" * 100_000), shell % (b'["' + b"i" * 20 * million + b'"]')]


class Sender:
    """A connection that is kept alive where the server keeps it."""

    def __init__(self, server: TritonServer) -> None:
        self._place = server.http_url.removeprefix("http://")
        self._connection = http.client.HTTPConnection(self._place, timeout=TIMEOUT_S)

    def send(self, path: str, body: Body, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and answer; a server may close a connection after an answer, but not instead of one."""
        if self._connection.sock is not None:
            try:
                return self._send(path, body, headers)
            except OSError:
                self._connection.close()
        return self._send(path, body, headers)

    def _send(self, path: str, body: Body, headers: dict[str, str]) -> tuple[int, bytes]:
        self._connection.request("POST", path, body, headers)
        reply = self._connection.getresponse()
        return reply.status, reply.read()


def refused(status: int, answer: bytes) -> bool:
    """With a reason; the server's own JSON reader calls it its own error (500) where it cannot read something."""
    return bool(answer) and (status in (400, 404, 501) or (status == 500 and b"arse " in answer))


def assert_serves(server: TritonServer, processes: list[int], models_of: Callable[[int | None], list[int]]) -> None:
    status, answer = Sender(server).send(PATH, json.dumps(good()).encode(), {})
    assert status == 200, answer
    (items,) = [one["data"] for one in json.loads(answer)["outputs"] if one["name"] == "item_ids"]
    assert len(items) == 5
    assert [server.pid, *models_of(server.pid)] == processes  # nothing died and was replaced


def test_ten_thousand_malformed_requests_over_http(
    triton: TritonServer, models_of: Callable[[int | None], list[int]]
) -> None:
    processes = [triton.pid or 0, *models_of(triton.pid)]
    seen: Counter[int] = Counter()
    failures: list[tuple[object, Body]] = []

    def work(number: int) -> None:
        rng, sender = random.Random(number), Sender(triton)
        for _ in range(REQUESTS // THREADS):
            path, body, headers = request(rng)
            try:
                status, answer = sender.send(path, body, headers)
            except Exception as error:
                failures.append((error, body))
                return
            seen[status] += 1
            if not (status == 200 or refused(status, answer)):
                failures.append(((status, answer[:300], path, headers), body[:300]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen.total() == REQUESTS
    assert seen[200] < 0.2 * REQUESTS  # a generator of good requests would prove nothing
    assert_serves(triton, processes, models_of)


def test_requests_that_weigh_megabytes(triton: TritonServer, models_of: Callable[[int | None], list[int]]) -> None:
    processes = [triton.pid or 0, *models_of(triton.pid)]
    answers = [Sender(triton).send(PATH, body, {}) for body in heavy()]
    assert all(refused(*answer) for answer in answers)
    reasons = [json.loads(answer)["error"] for _, answer in answers]
    assert reasons[0] == "history has 1000000 entries; send at most 10000, the newest."
    assert reasons[1] == "exclude has 1000000 entries; send at most 10000."
    assert reasons[2] == "history_ids has 1000000 entries; send at most 10000, the newest."
    assert "in the catalogue" in reasons[3]
    assert all(len(reason) < 1_000 for reason in reasons)
    assert_serves(triton, processes, models_of)


def test_malformed_requests_over_grpc(triton: TritonServer, models_of: Callable[[int | None], list[int]]) -> None:
    """What JSON cannot say: raw contents of any length, shapes that overflow, text that is no UTF-8."""
    processes, rng = [triton.pid or 0, *models_of(triton.pid)], random.Random(0)
    seen: Counter[str] = Counter()
    with grpc.insecure_channel(triton.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(1_000):
            asked = service_pb2.ModelInferRequest(model_name=rng.choice(["tessera"] * 9 + ["", "x"]))
            for name in rng.choices(NAMES, k=rng.randrange(1, 4)):
                one = asked.inputs.add(name=name, datatype=str(rng.choice(TYPES[:6])))
                one.shape.extend(rng.choices([0, 1, 1, 1, 2, 64, -1, 2**62], k=rng.choice([0, 1, 2, 2, 2, 3])))
                if rng.random() < 0.7:
                    asked.raw_input_contents.append(raw(rng))
                else:
                    one.contents.bytes_contents.extend([b"\xff\xfe", b"100"])
            asked.parameters["timeout"].int64_param = rng.choice([0, -1, 1, 2**62])
            try:
                stub.ModelInfer(asked, timeout=TIMEOUT_S)
                seen["OK"] += 1
            except grpc.RpcError as error:
                seen[error.code().name] += 1
    assert set(seen) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE"}, seen
    assert seen["INVALID_ARGUMENT"] > 500
    assert_serves(triton, processes, models_of)


def raw(rng: random.Random) -> bytes:
    """Length-prefixed strings, with lengths that may lie, or anything."""
    parts = [b"103", b"\xff\xfe", b"", b"a\x00b", rng.randbytes(5)]
    texts = rng.choices(parts, k=rng.randrange(4))
    lengths = [rng.choice([len(text)] * 4 + [2**31, 2**32 - 1, 0]) for text in texts]
    framed = b"".join(n.to_bytes(4, "little") + text for n, text in zip(lengths, texts, strict=True))
    return rng.choice([framed, framed, rng.randbytes(rng.randrange(30)), b"", bytes(itertools.repeat(1, 8))])
