"""What stages ask of a provider, and what a language model must offer to become one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tessera.enrichment.parsing import Intents
from tessera.enrichment.prompts import Kind, Rewrite

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DESCRIPTION = 1200


@dataclass(frozen=True)
class Item:
    """One item as an enrichment sees it: its texts, and as far as they exist its photo, caption and descriptors."""

    item_id: str
    title: str
    description: str = ""
    brand: str = ""
    categories: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    caption: str | None = None
    descriptors: tuple[str, ...] = ()
    photo: "Image | None" = None

    def text(self) -> str:
        """The item's texts as labelled lines, for a prompt; empty fields are left out."""
        lines = {
            "Title": self.title,
            "Brand": self.brand,
            "Categories": ", ".join(self.categories),
            "Attributes": ", ".join(self.attributes),
            "Description": self.description[:MAX_DESCRIPTION],
            "Photo caption": self.caption or "",
        }
        return "\n".join(f"{name}: {text}" for name, text in lines.items() if text)


@dataclass(frozen=True)
class Failure:
    """An item that got no answer, and why; `sent` says whether a model was asked at all.

    cut: the start of an answer that was too long, which may be asked for once more.
    """

    reason: str
    sent: bool = True
    cut: str = ""


class Enricher(Protocol):
    """Answers one or more kinds of enrichment. Making one is cheap: weights load at the first call.

    Answers are aligned with `items`. Whoever implements this raises ModelCallError when no item can be answered at
    all, for example because an endpoint is down.
    """

    provider: str
    model: str

    def prompt_version(self, kind: Kind) -> str:
        """What the ledger keys this kind's prompt, or rules, by."""

    def captions(self, items: Sequence[Item]) -> list[str | Failure]:
        """A caption per item; every item has its photo."""

    def intents(self, items: Sequence[Item]) -> list[Intents | Failure]:
        """Surface attributes, motives and descriptors per item."""

    def quality(self, items: Sequence[Item]) -> list[list[int] | Failure]:
        """A 0/1 label for each of an item's descriptors."""

    def rewrites(self, kind: Rewrite, items: Sequence[Item]) -> list[str | Failure]:
        """The item's text as a summary or in other words."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat; a photo goes before the text."""

    role: Literal["user", "assistant"]
    text: str
    image: "Image | None" = None


@dataclass(frozen=True)
class ModelRequest:
    """One completion: the chat so far and, where the answer must be JSON, its JSON Schema."""

    messages: tuple[Message, ...]
    schema: dict[str, Any] | None = None
    max_tokens: int = 400


class LanguageModel(Protocol):
    """A chat model behind the `openai` or the `transformers` provider."""

    provider: str
    model: str

    def complete(self, requests: Sequence[ModelRequest]) -> list[str | Failure]:
        """Answer each request, in order.

        Raises:
            ModelCallError: the model cannot be reached or loaded, so that asking for further items is pointless.
        """
