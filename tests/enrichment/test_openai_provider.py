"""The `openai` provider against a real HTTP server that misbehaves as real endpoints do."""

import base64
import io
import json
import logging
import time
from typing import Any

import pytest
from PIL import Image

from tessera.config import EnrichmentSettings, ModelSettings
from tessera.enrichment.providers import open_enricher
from tessera.enrichment.providers import openai as provider
from tessera.enrichment.providers.base import Failure, Item, Message, ModelRequest
from tessera.enrichment.providers.openai import OpenAIModel
from tessera.enrichment.providers.prompted import PromptedEnricher
from tessera.errors import InputError, ModelCallError

INTENTS = {
    "surface": ["ball"],
    "motives": ["play on the beach"],
    "descriptors": [{"text": "beach games", "confidence": 0.8}],
}
BALL = Item("1", "Ball, size 4", caption="A ball on sand.")


def said(text: str | None, **message: Any) -> tuple[int, dict[str, str], bytes]:
    choice = {"message": {"role": "assistant", "content": text} | message, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


def ask_text(text: str) -> ModelRequest:
    return ModelRequest((Message("user", text),))


def content(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"]


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "FIRST_WAIT_S", 0.01)


def settings_for(endpoint: Any, **changes: Any) -> EnrichmentSettings:
    return EnrichmentSettings(base_url=endpoint.url, **({"timeout_s": 5.0} | changes))


def test_answers_keep_their_order_whatever_the_order_of_arrival(serve) -> None:
    def reply(body):
        number = int(content(body))
        time.sleep(0.02 * (5 - number % 5))
        return said(f"answer {number}")

    endpoint = serve(reply)
    answers = OpenAIModel("m", settings_for(endpoint, concurrency=4)).complete([ask_text(str(n)) for n in range(12)])
    assert answers == [f"answer {n}" for n in range(12)]
    assert 2 <= endpoint.most_at_once <= 4
    assert {request["model"] for request in endpoint.requests} == {"m"}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_errors_are_retried(serve, status: int) -> None:
    seen: list[str] = []

    def reply(body):
        seen.append(content(body))
        return said("fine") if seen.count(content(body)) == 3 else (status, {}, b"overloaded")

    answers = OpenAIModel("m", settings_for(serve(reply), retries=2)).complete([ask_text("a"), ask_text("b")])
    assert answers == ["fine", "fine"]
    assert len(seen) == 6


def test_retry_after_is_honoured(serve) -> None:
    times: list[float] = []

    def reply(_):
        times.append(time.monotonic())
        return said("fine") if len(times) == 2 else (429, {"retry-after": "0.6"}, b"slow down")

    assert OpenAIModel("m", settings_for(serve(reply))).complete([ask_text("a")]) == ["fine"]
    assert 0.6 <= times[1] - times[0] < 3


def test_an_item_that_keeps_failing_becomes_a_failure_beside_answered_ones(serve) -> None:
    endpoint = serve(lambda body: (500, {}, b"crash on this one") if content(body) == "bad" else said("fine"))
    answers = OpenAIModel("m", settings_for(endpoint, retries=1)).complete([ask_text(t) for t in ("x", "bad", "y")])
    assert answers == ["fine", Failure("HTTP 500: crash on this one"), "fine"]


def test_a_hanging_request_times_out_and_is_retried(serve) -> None:
    calls: list[int] = []

    def reply(_):
        calls.append(1)
        if len(calls) == 1:
            time.sleep(4)
        return said("late")

    started = time.monotonic()
    assert OpenAIModel("m", settings_for(serve(reply), timeout_s=0.4)).complete([ask_text("a")]) == ["late"]
    assert len(calls) == 2
    assert time.monotonic() - started < 4


def test_an_endpoint_that_is_down_fails_at_once_for_the_whole_batch() -> None:
    settings = EnrichmentSettings(base_url="http://127.0.0.1:9/v1", concurrency=2, retries=1)
    with pytest.raises(ModelCallError, match=r"127\.0\.0\.1:9.*answered none of 500 requests.*start the endpoint"):
        OpenAIModel("m", settings).complete([ask_text(str(n)) for n in range(500)])


def test_an_endpoint_that_only_errs_is_given_up_before_every_item_was_tried(serve) -> None:
    endpoint = serve(lambda _: (503, {}, b"loading"))
    with pytest.raises(ModelCallError, match="HTTP 503: loading"):
        OpenAIModel("m", settings_for(endpoint, retries=0, concurrency=1)).complete([ask_text("a")] * 50)
    assert [content(body) for body in endpoint.requests] == ["a", "a", "a", "Hello"]


def test_an_endpoint_that_only_errs_is_given_up_also_where_every_batch_is_one_item(serve) -> None:
    model = OpenAIModel("m", settings_for(serve(lambda _: (503, {}, b"loading")), retries=0))
    lost = [Failure("HTTP 503: loading")]
    assert [model.complete([ask_text("a")]) for _ in range(2)] == [lost, lost]
    with pytest.raises(ModelCallError, match="HTTP 503: loading"):
        model.complete([ask_text("a")])


@pytest.mark.parametrize("count", [1, 5, 20])
def test_items_that_keep_failing_alone_in_their_batch_are_failures_of_a_live_endpoint(serve, count: int) -> None:
    """As in a run that is repeated for what failed before."""
    endpoint = serve(lambda body: (500, {}, b"crash on this one") if content(body) == "bad" else said("fine"))
    model = OpenAIModel("m", settings_for(endpoint, retries=0, concurrency=2))
    assert model.complete([ask_text("bad")] * count) == [Failure("HTTP 500: crash on this one")] * count
    assert model.complete([ask_text("good")]) == ["fine"]


def test_answers_are_kept_where_asking_again_is_lost(serve) -> None:
    def reply(body):
        if len(body["messages"]) > 1 or content(body) == "Hello":
            return 503, {}, b"gone"
        return said("nice balls" if "Title: Bad" in content(body) else json.dumps(INTENTS))

    model = OpenAIModel("m", settings_for(serve(reply), retries=0))
    *bad, good = PromptedEnricher(model).intents([*(Item(str(n), f"Bad {n}") for n in range(4)), BALL])
    assert good.descriptors[0].text == "beach games"
    assert len(bad) == 4
    assert all("HTTP 503: gone" in one.reason for one in bad)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_key_or_model_is_one_clear_sentence_without_the_key(
    serve, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOP_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    endpoint = serve(lambda _: (status, {}, b'{"error": "bad key sk-very-secret"}'))
    with pytest.raises(ModelCallError) as error:
        OpenAIModel("gpt", settings_for(endpoint, api_key_env="SHOP_KEY")).complete([ask_text("a")])
    assert f"HTTP {status}" in str(error.value)
    assert "'gpt'" in str(error.value)
    assert "$SHOP_KEY" in str(error.value)
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "sk-very-secret" not in str(error.value) + caplog.text
    assert len(endpoint.requests) == 1


def test_photos_travel_as_jpeg_data_urls(serve) -> None:
    endpoint = serve(lambda _: said("A red square on a white table, plain and clean."))
    photo = Image.new("RGB", (40, 20), (200, 30, 30))
    enricher = PromptedEnricher(OpenAIModel("m", settings_for(endpoint)))
    assert enricher.captions([Item("1", "Square", photo=photo)]) == ["A red square on a white table, plain and clean."]
    image, text = endpoint.requests[0]["messages"][0]["content"]
    header, data = image["image_url"]["url"].split(",")
    assert header == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.size == (40, 20)
    assert all(abs(a - b) < 12 for a, b in zip(sent.getpixel((5, 5)), (200, 30, 30), strict=True))
    assert "Title: Square" in text["text"]


def test_malformed_json_is_asked_for_once_more_with_the_error(serve) -> None:
    def reply(body):
        return said("these are nice balls") if len(body["messages"]) == 1 else said(json.dumps(INTENTS))

    endpoint = serve(reply)
    (intents,) = PromptedEnricher(OpenAIModel("m", settings_for(endpoint))).intents([BALL])
    assert intents.descriptors[0].text == "beach games"
    assert len(endpoint.requests) == 2
    _, answer, complaint = endpoint.requests[1]["messages"]
    assert answer == {"role": "assistant", "content": "these are nice balls"}
    assert "no JSON object" in complaint["content"]


def test_what_stays_unusable_fails_with_its_reason_after_two_requests(serve) -> None:
    example = {"surface": [], "motives": ["x y"], "descriptors": [{"text": "Long-distance trail running"}]}
    by_title = {
        "Good": json.dumps(INTENTS),
        "Refused": "I'm sorry, I can't help with that.",
        "Overconfident": json.dumps(INTENTS | {"descriptors": [{"text": "beach games", "confidence": 7}]}),
        "Copied": json.dumps(example),
        "Empty": None,
    }
    endpoint = serve(lambda body: said(next(a for t, a in by_title.items() if f"Title: {t}" in content(body))))
    results = PromptedEnricher(OpenAIModel("m", settings_for(endpoint))).intents([Item(t, t) for t in by_title])
    assert results[0].descriptors[0].text == "beach games"
    reasons = [result.reason for result in results[1:]]
    for reason, expected in zip(reasons, ("refused", "between 0 and 1, not 7", "the example", "empty"), strict=True):
        assert reason.startswith("unusable after one retry: ")
        assert expected in reason
    assert len(endpoint.requests) == 5 + 4


def cut_off(text: str) -> tuple[int, dict[str, str], bytes]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


def test_plain_text_that_was_cut_off_is_asked_for_once_more_then_fails(serve) -> None:
    long, short = "A red ball on a white beach, and beside it a", "A red ball on a beach."
    endpoint = serve(
        lambda body: said(short) if len(body["messages"]) > 1 and "Title: Ball" in content(body) else cut_off(long)
    )
    items = [BALL, Item("2", "Lamp", caption="A lamp.")]
    told, failed = PromptedEnricher(OpenAIModel("m", settings_for(endpoint))).rewrites("summary", items)
    assert told == short
    assert failed == Failure("unusable after one retry: it was cut off after max_tokens (200)")
    assert len(endpoint.requests) == 4
    _, answer, complaint = endpoint.requests[-1]["messages"]
    assert answer["content"] == long
    assert "cut off after max_tokens" in complaint["content"]


def test_json_that_is_whole_is_taken_though_the_answer_ran_on(serve) -> None:
    endpoint = serve(lambda _: cut_off(f"{json.dumps(INTENTS)} I chose these because"))
    (intents,) = PromptedEnricher(OpenAIModel("m", settings_for(endpoint))).intents([BALL])
    assert intents.descriptors[0].text == "beach games"


def test_a_stated_refusal_is_a_failure_without_a_second_request(serve) -> None:
    endpoint = serve(lambda _: said(None, refusal="I will not."))
    results = PromptedEnricher(OpenAIModel("m", settings_for(endpoint))).intents([BALL])
    assert results == [Failure("refused: 'I will not.'")]
    assert len(endpoint.requests) == 1


def test_labels_are_constrained_by_a_schema_of_the_right_length(serve) -> None:
    endpoint = serve(lambda _: said('{"labels": [1, 0]}'))
    item = Item("1", "Ball", descriptors=("beach games", "great gift"))
    assert PromptedEnricher(OpenAIModel("m", settings_for(endpoint))).quality([item]) == [[1, 0]]
    body = endpoint.requests[0]
    labels = body["response_format"]["json_schema"]["schema"]["properties"]["labels"]
    assert (labels["minItems"], labels["maxItems"]) == (2, 2)
    assert "1. beach games\n2. great gift" in content(body)


def test_an_endpoint_without_response_format_is_asked_without_and_says_so(
    serve, caplog: pytest.LogCaptureFixture
) -> None:
    def reply(body):
        if "response_format" in body:
            return 400, {}, b'{"error": "unknown field response_format"}'
        return said(json.dumps(INTENTS))

    endpoint = serve(reply)
    model = OpenAIModel("m", settings_for(endpoint, concurrency=1))
    assert all(not isinstance(r, Failure) for r in PromptedEnricher(model).intents([BALL, BALL]))
    assert ["response_format" in body for body in endpoint.requests] == [True, False, False]
    assert "does not take response_format" in caplog.text


def test_a_bad_request_is_this_items_failure(serve) -> None:
    endpoint = serve(lambda body: (400, {}, b"context too long") if "long" in content(body) else said("fine"))
    answers = OpenAIModel("m", settings_for(endpoint)).complete([ask_text("long"), ask_text("short")])
    assert answers == [Failure("HTTP 400: context too long"), "fine"]


def test_a_response_that_is_no_completion_is_retried_then_given_up(serve) -> None:
    endpoint = serve(lambda _: (200, {}, b"<html>proxy login</html>"))
    model = OpenAIModel("m", settings_for(endpoint, retries=1))
    assert model.complete([ask_text("a")]) == [Failure("the response is no chat completion")]
    assert len(endpoint.requests) == 2
    with pytest.raises(ModelCallError, match="no chat completion"):
        model.complete([ask_text("a")] * 3)


def test_works_inside_a_running_event_loop(serve) -> None:
    import asyncio

    endpoint = serve(lambda _: said("fine"))

    async def notebook_cell():
        return OpenAIModel("m", settings_for(endpoint)).complete([ask_text("a")])

    assert asyncio.run(notebook_cell()) == ["fine"]


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(InputError, match="needs a model name"):
        open_enricher("intents", EnrichmentSettings(intents=ModelSettings("openai")))
    with pytest.raises(InputError, match="concurrency"):
        OpenAIModel("m", EnrichmentSettings(concurrency=0))
    with pytest.raises(InputError, match="no usable URL"):
        OpenAIModel("m", EnrichmentSettings(base_url="localhost:80", retries=0)).complete([ask_text("a")])
