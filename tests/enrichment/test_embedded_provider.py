"""The embedded provider on photos drawn here: what it sees, what it concludes, and what it must not invent."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tessera.enrichment.encoders import TextEncoder, embedded_image_encoder, embedded_text_encoder
from tessera.enrichment.parsing import Intents, parse_caption
from tessera.enrichment.providers.base import Item
from tessera.enrichment.providers.embedded import EmbeddedEnricher
from tessera.enrichment.providers.embedded.captions import compose
from tessera.enrichment.providers.embedded.intents import confidence, match_text, surface_of
from tessera.enrichment.providers.embedded.lexicon import load_lexicon, scenes_in
from tessera.enrichment.providers.embedded.pixels import look_at
from tessera.enrichment.providers.embedded.quality import names_use, specific

SCENES = ("beach", "grass", "wood", "snow", "night")


@pytest.fixture(scope="module")
def texts() -> TextEncoder:
    return embedded_text_encoder()


@pytest.fixture(scope="module")
def enricher() -> EmbeddedEnricher:
    return EmbeddedEnricher("intents")


@pytest.mark.parametrize("place", SCENES)
@pytest.mark.parametrize("seed", [0, 1])
def test_scenes_are_told_apart_by_pixels(scene, place: str, seed: int) -> None:
    assert look_at(scene(place, (200, 40, 50), seed)).scene == place


def test_plain_surroundings_are_no_scene_whatever_their_colour(scene) -> None:
    assert look_at(scene("studio", (200, 40, 50))).scene is None
    for colour in ((225, 200, 150), (70, 150, 55), (12, 12, 14), (235, 242, 252)):
        flat = Image.new("RGB", (100, 100), colour)
        flat.paste((200, 40, 50), (30, 30, 70, 70))
        look = look_at(flat)
        assert look.scene is None
        assert look.colours == ("red",)


@pytest.mark.parametrize(
    ("colour", "name"),
    [((205, 35, 45), "red"), ((40, 105, 205), "blue"), ((245, 215, 60), "yellow"), ((18, 18, 20), "black")],
)
def test_product_colours_are_named_whatever_the_scene(scene, colour: tuple[int, int, int], name: str) -> None:
    for place in ("beach", "grass", "studio"):
        assert name in look_at(scene(place, colour)).colours[:2]


def test_shape_follows_the_outline() -> None:
    for size, shape in (((20, 70), "tall"), ((70, 20), "wide"), ((50, 50), "compact")):
        photo = Image.new("RGB", (100, 100), (250, 250, 250))
        photo.paste((30, 60, 160), (50 - size[0] // 2, 50 - size[1] // 2, 50 + size[0] // 2, 50 + size[1] // 2))
        assert look_at(photo).shape == shape


def test_captions_say_scene_and_colour_and_would_pass_the_strict_parser(scene) -> None:
    items = [Item(place, "Ball", photo=scene(place, (205, 35, 45))) for place in SCENES]
    captions = EmbeddedEnricher("caption").captions(items)
    for place, caption in zip(SCENES, captions, strict=True):
        assert parse_caption(caption) == caption
        assert place in scenes_in(caption)
        assert "red" in caption
    assert len(set(captions)) == len(SCENES)
    assert EmbeddedEnricher("caption").captions(items) == captions


def test_every_scene_phrase_names_its_own_scene_and_no_unrelated_one(scene) -> None:
    look = look_at(scene("studio", (205, 35, 45)))
    for name in load_lexicon().scenes:
        caption = compose(type(look)(**{**vars(look), "scene": name}), None)
        assert name in scenes_in(caption), caption
        assert len(scenes_in(caption)) <= 2, caption
    assert not scenes_in(compose(look, None))


def test_near_twins_get_the_intents_of_their_photos(enricher: EmbeddedEnricher, scene) -> None:
    photos = [Item(p, "Nova Ball, size 4", categories=("Sports",), photo=scene(p, (205, 35, 45))) for p in SCENES[:4]]
    captions = EmbeddedEnricher("caption").captions(photos)
    twins = [replace(item, caption=caption, photo=None) for item, caption in zip(photos, captions, strict=True)]
    mined = enricher.intents(twins)
    best = [{d.text for d in intents.descriptors[:2]} for intents in mined]
    for one in range(len(best)):
        for other in range(one):
            assert best[one] != best[other]
    by_tag = {m.tag: m.scenes for m in load_lexicon().motives}
    for item, intents in zip(twins, mined, strict=True):
        assert item.item_id in by_tag[intents.descriptors[0].text]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Item("1", "Nitrile exam gloves, powder free, 100/box"), {"medical exam supplies", "hand protection at work"}),
        (Item("2", "Self-tanning lotion, deep dark"), {"self tanning"}),
        (Item("3", "Curl defining cream for frizzy hair"), {"curly hair definition"}),
        (Item("4", "Whole granny smith apples", categories=("Fruit", "Apple")), {"baking and dessert fruit"}),
        (Item("5", "PLA filament 1.75 mm for 3D printer"), {"3D printing projects"}),
        (Item("6", "Two person tent"), {"camping under trees"}),
    ],
)
def test_motives_fit_items_of_many_trades(enricher: EmbeddedEnricher, item: Item, expected: set[str]) -> None:
    (intents,) = enricher.intents([item])
    assert isinstance(intents, Intents)
    assert expected & {d.text for d in intents.descriptors[:2]}
    assert 3 <= len(intents.descriptors) <= 5
    confidences = [d.confidence for d in intents.descriptors]
    assert confidences == sorted(confidences, reverse=True)


def test_an_answer_does_not_depend_on_the_batch(enricher: EmbeddedEnricher) -> None:
    items = [Item("1", "Two person tent"), Item("2", "Lip balm with honey and a long name " * 5, caption="On sand.")]
    together, alone = enricher.intents(items), [enricher.intents([item])[0] for item in items]
    assert [[d.text for d in i.descriptors] for i in together] == [[d.text for d in i.descriptors] for i in alone]


def test_confidence_is_even_at_the_even_score_and_rises() -> None:
    assert confidence(0.30) == 0.5
    assert confidence(0.38) == pytest.approx(1 / (1 + np.exp(-1)), abs=0.005)
    assert confidence(-1) == 0.05
    assert confidence(2) == 0.95


def test_surface_states_what_the_texts_say() -> None:
    title, caption = "Bottle 500 ml, pack of 2", "A tall red thing."
    item = Item("1", title, brand="Oak", categories=("Home", "Kitchen"), caption=caption)
    assert surface_of(item) == ("Oak", "Home", "Kitchen", "500 ml", "pack of 2", "A tall red thing.")
    assert "500 ml" not in match_text(item)


def test_quality_is_specific_actionable_and_grounded(enricher: EmbeddedEnricher) -> None:
    football = Item(
        "1", "Match football size 5", categories=("Sports", "Balls"), caption="A white ball on green grass.",
        descriptors=("weekend football on grass", "high quality product", "coffee and tea rituals", "kids football"),
    )  # fmt: skip
    assert enricher.quality([football]) == [[1, 0, 0, 1]]


def test_vague_words_and_uses() -> None:
    assert specific("beach volleyball")
    assert specific("aromatherapy")
    for vague in ("great gift", "very high quality", "nice product for everyone"):
        assert not specific(vague)
    for use in ("camping in rain", "gift for dads", "toys toddlers love"):
        assert names_use(use)
    for no_use in ("red steel", "king size", "white cotton"):
        assert not names_use(no_use)


def test_lexicon_is_well_formed() -> None:
    lexicon = load_lexicon()
    tags = [motive.tag for motive in lexicon.motives]
    assert len(tags) >= 150
    assert len(set(tags)) == len(tags)
    for motive in lexicon.motives:
        assert motive.scenes <= set(lexicon.scenes), motive
        assert specific(motive.tag), motive
        assert 4 <= len(motive.tag) <= 60, motive


def test_versions_name_weights_and_rules() -> None:
    caption, intents = EmbeddedEnricher("caption"), EmbeddedEnricher("intents")
    assert caption.model == "efficientnet-lite0@0.1.0"
    assert intents.model == "minilm-l6-v2@0.1.0"
    versions = {kind: caption.prompt_version(kind) for kind in ("caption", "intents", "quality")}
    assert len(set(versions.values())) == 3
    assert all(version.startswith("rules.v1@") for version in versions.values())


def test_image_features_are_unit_and_tell_photos_apart(scene) -> None:
    encoder = embedded_image_encoder()
    photos = [scene("beach", (200, 40, 50)), scene("beach", (200, 40, 50), 1), scene("grass", (250, 250, 250))]
    features, tags = encoder.features_and_tags(photos)
    assert features.shape == (3, 1280)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(tags.sum(axis=1), 1, atol=1e-4)
    assert features[0] @ features[1] > features[0] @ features[2] + 0.05
    np.testing.assert_allclose(encoder.encode(photos[:1])[0], features[0], atol=1e-5)


def test_text_vectors_are_unit_cut_and_meaningful(texts: TextEncoder) -> None:
    words = "football on grass " * 60
    tent, woods = "a tent for camping", "sleeping outdoors in the woods"
    vectors = texts.encode([tent, woods, "red lipstick", words, words + "lipstick"])
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    np.testing.assert_allclose(vectors[3], vectors[4], atol=1e-5)  # the difference lies beyond the cut
