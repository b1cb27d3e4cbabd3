"""The lexicon: purchase motives with the scenes they belong to, and the words by which a caption gives a scene away."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FILE = Path(__file__).parent / "lexicon.v1.json"


@dataclass(frozen=True)
class Scene:
    """A kind of place: how a caption says it, the life it suggests, and the words that name it in any caption."""

    place: str
    life: str
    words: frozenset[str]


@dataclass(frozen=True)
class Motive:
    """A descriptor tag, the motive behind it in a few plain words, and the scenes it fits (none: any)."""

    tag: str
    motive: str
    scenes: frozenset[str]


@dataclass(frozen=True)
class Lexicon:
    """All scenes by name, all motives, and three word lists: praise that says nothing, little words, kinds of users."""

    scenes: dict[str, Scene]
    motives: tuple[Motive, ...]
    vague: frozenset[str]
    little: frozenset[str]
    users: frozenset[str]


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    """The lexicon that ships with Tessera."""
    raw = json.loads(FILE.read_text(encoding="utf-8"))
    scenes = {name: Scene(s["place"], s["life"], frozenset(s["words"])) for name, s in raw["scenes"].items()}
    motives = tuple(Motive(e["tag"], e["motive"], frozenset(e["scenes"])) for e in raw["entries"])
    vague, little, users = (frozenset(raw[name]) for name in ("vague", "little", "users"))
    return Lexicon(scenes, motives, vague | little, little, users)


def words_of(text: str) -> list[str]:
    """Lower-case words of two letters or more."""
    return re.findall(r"[a-z][a-z'’-]*[a-z]", text.lower())


def scenes_in(caption: str) -> frozenset[str]:
    """Names of the scenes that a caption mentions, whoever wrote it."""
    found = set(words_of(caption))
    return frozenset(name for name, scene in load_lexicon().scenes.items() if found & scene.words)
