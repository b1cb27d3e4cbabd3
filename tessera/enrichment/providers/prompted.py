"""Captions, intents and labels from a language model: fill the prompt, read strictly, ask again once, give up."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tessera.enrichment.parsing import (
    Intents,
    ParseError,
    intents_schema,
    labels_schema,
    parse_caption,
    parse_intents,
    parse_labels,
    parse_rewrite,
)
from tessera.enrichment.prompts import Kind, Prompt, Rewrite, framed, load_prompt
from tessera.enrichment.providers.base import Failure, Item, LanguageModel, Message, ModelRequest
from tessera.errors import ModelCallError

T = TypeVar("T")
MAX_ECHO = 2000


class PromptedEnricher:
    """An Enricher on top of any LanguageModel."""

    def __init__(self, llm: LanguageModel) -> None:
        self.llm = llm
        self.provider, self.model = llm.provider, llm.model

    def prompt_version(self, kind: Kind) -> str:
        """Name and digest of the prompt file."""
        return load_prompt(kind).version

    def captions(self, items: Sequence[Item]) -> list[str | Failure]:
        """CMSA path 1: the photo in words."""
        prompt = load_prompt("caption")
        turns = [Message("user", prompt.fill(item=framed(item.text())), item.photo) for item in items]
        requests = [ModelRequest((turn,), max_tokens=200) for turn in turns]
        return ask(self.llm, requests, [parse_caption] * len(items))

    def intents(self, items: Sequence[Item]) -> list[Intents | Failure]:
        """DCIM: surface attributes, motives, descriptors with confidence."""
        prompt, schema = load_prompt("intents"), intents_schema()
        turns = [Message("user", prompt.fill(item=framed(item.text()))) for item in items]
        requests = [ModelRequest((turn,), schema, max_tokens=500) for turn in turns]
        return ask(self.llm, requests, [lambda raw: _own(parse_intents(raw), prompt)] * len(items))

    def quality(self, items: Sequence[Item]) -> list[list[int] | Failure]:
        """QARM's binary labels."""
        prompt = load_prompt("quality")
        requests, parsers = [], []
        for item in items:
            tags = "\n".join(f"{n}. {tag}" for n, tag in enumerate(item.descriptors, 1))
            count = len(item.descriptors)
            text = prompt.fill(item=framed(item.text()), tags=framed(tags, "tags"))
            requests.append(ModelRequest((Message("user", text),), labels_schema(count), max_tokens=40 + 8 * count))
            parsers.append(lambda raw, count=count: parse_labels(raw, count))
        return ask(self.llm, requests, parsers)

    def rewrites(self, kind: Rewrite, items: Sequence[Item]) -> list[str | Failure]:
        """The item's text as a summary or in other words, in plain text."""
        prompt = load_prompt(kind)
        turns = [Message("user", prompt.fill(item=framed(item.text()))) for item in items]
        requests = [ModelRequest((turn,), max_tokens=200) for turn in turns]
        return ask(self.llm, requests, [parse_rewrite] * len(items))


def _own(intents: Intents, prompt: Prompt) -> Intents:
    """Refuse the prompt's example handed back as an answer, which small models like to do."""
    example = prompt.text.casefold()
    if all(f'"{descriptor.text.casefold()}"' in example for descriptor in intents.descriptors):
        raise ParseError("the descriptors are those of the example, not of this product")
    return intents


def ask(
    llm: LanguageModel, requests: Sequence[ModelRequest], parsers: Sequence[Callable[[str], T]]
) -> list[T | Failure]:
    """Complete and parse; what does not parse or was cut off is asked for once more with the reason, then fails."""
    results, again = _read(llm.complete(requests), parsers)
    if again:
        retries = [_reask(requests[i], answer, error) for i, (answer, error) in again.items()]
        answers: list[str | Failure]
        try:
            answers = llm.complete(retries)
        except ModelCallError as error:  # the answers already there are to be recorded; the next batch meets it again
            answers = [Failure(str(error))] * len(retries)
        second, still = _read(answers, [parsers[i] for i in again])
        for position, i in enumerate(again):
            outcome = second[position]
            if outcome is None:
                outcome = Failure(f"unusable after one retry: {still[position][1]}")
            results[i] = outcome
    return [result if result is not None else Failure("no answer") for result in results]


def _read(
    answers: Sequence[str | Failure], parsers: Sequence[Callable[[str], T]]
) -> tuple[list[T | Failure | None], dict[int, tuple[str, str]]]:
    """Parsed answers (None where unusable), and for those the answer with what is wrong with it."""
    results: list[T | Failure | None] = []
    wrong: dict[int, tuple[str, str]] = {}
    for i, (answer, parse) in enumerate(zip(answers, parsers, strict=True)):
        if isinstance(answer, Failure):
            results.append(None if answer.cut else answer)
            if answer.cut:
                wrong[i] = (answer.cut, f"it was {answer.reason}")
            continue
        try:
            results.append(parse(answer))
        except ParseError as error:
            results.append(None)
            wrong[i] = (answer, str(error))
    return results, wrong


def _reask(request: ModelRequest, answer: str, error: str) -> ModelRequest:
    form = "only the JSON object" if request.schema else "only the text"
    complaint = f"That answer cannot be used: {error}. Answer again with {form} that was asked for."
    said = answer[:MAX_ECHO] or "(empty)"
    turns = (*request.messages, Message("assistant", said), Message("user", complaint))
    return ModelRequest(turns, request.schema, request.max_tokens)
