"""What the demo shop sells: families of near twins whose text is the same and whose purpose only the photo shows.

The failure that DeepInterestGR (arXiv 2604.20861) starts from, as a catalogue: a ball of size 4 for the beach and one
of size 5 for the pitch, "Northwind Nova Ball" both, are neighbours in text and strangers to the people who buy them.
"""

from dataclasses import dataclass

import numpy as np

from tessera.errors import InputError

HINT_SHARE = 0.2  # items whose attributes say something of their purpose
_TWINS = (4, 8)  # fewest and most items of a family
_BRANDS = (
    "Northwind", "Halden", "Corvo", "Pinewell", "Oakline", "Brightway", "Terrano", "Solvane", "Marlo", "Kestrel",
)
# Names of ranges that say nothing of use.
_RANGES = ("Nova", "Flex", "Prime", "Classic", "Plus", "Duo", "Core", "Vita", "Original", "One", "Delta", "Aero")


@dataclass(frozen=True)
class Intent:
    """Why people buy: the scene in its photos, the products that follow each other, and hints an attribute may give."""

    scene: str
    journey: tuple[str, ...]
    hints: tuple[str, ...]


@dataclass(frozen=True)
class Product:
    """A type of product: its place in the shop and the text that its families share."""

    noun: str
    department: str
    material: str
    feature: str
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One product for sale; `family`, `intent` and `scene` are the truth, the rest is what the shop shows."""

    item_id: str
    title: str
    description: str
    brand: str
    categories: list[str]
    attributes: list[str]
    family: str
    product: str
    intent: str
    scene: str


# The order of a journey is the order in which customers tend to buy.
INTENTS = {
    "beach play": Intent(
        "beach", ("towel", "ball", "hat", "bag", "chair", "toy", "tent", "speaker", "blanket"),
        ("for sunny days", "rinses clean of sand"),
    ),
    "grass football": Intent("pitch", ("shoe", "ball", "bottle", "hat", "jacket"), ("match day", "grips on turf")),
    "indoor sport": Intent("court", ("bottle", "shoe", "towel", "ball", "bag"), ("for the gym hall", "non-marking")),
    "winter outing": Intent(
        "snow", ("jacket", "hat", "ball", "shoe", "tent", "bottle", "toy"), ("stays soft in frost", "winter tested")
    ),
    "camping": Intent(
        "forest", ("tent", "lamp", "blanket", "mug", "chair", "bag", "shoe", "notebook"),
        ("for the outdoors", "packs small"),
    ),
    "office work": Intent(
        "office", ("bag", "notebook", "mug", "lamp", "bottle", "chair", "speaker", "jacket"),
        ("for the working day", "quietly elegant"),
    ),
    "cosy evening": Intent(
        "bedroom", ("blanket", "mug", "lamp", "towel", "toy", "notebook", "speaker"),
        ("for slow evenings", "soft touch"),
    ),
    "party": Intent(
        "party", ("speaker", "lamp", "mug", "hat", "toy", "notebook", "chair"), ("gets guests talking", "festive")
    ),
}

PRODUCTS = {
    "ball": Product("Ball", "Sports & Toys", "textured rubber", "an even bounce", ("Size 4", "Size 5")),
    "bag": Product("Bag", "Bags", "woven polyester", "padded straps and two pockets", ("20 L", "22 L")),
    "lamp": Product("Lamp", "Lighting", "powder-coated steel", "a dimmable LED", ("30 cm", "32 cm")),
    "mug": Product("Mug", "Kitchen", "glazed stoneware", "a handle that stays cool", ("300 ml", "330 ml")),
    "shoe": Product("Shoe", "Footwear", "breathable mesh", "a cushioned sole", ("Fit 1", "Fit 2")),
    "bottle": Product("Bottle", "Kitchen", "stainless steel", "a leak-proof cap", ("500 ml", "600 ml")),
    "tent": Product("Tent", "Outdoor", "coated ripstop", "a frame that opens by itself", ("2 Person", "3 Person")),
    "blanket": Product("Blanket", "Textiles", "brushed fleece", "a bound edge", ("130 cm", "140 cm")),
    "toy": Product("Toy Truck", "Sports & Toys", "sturdy plastic", "wheels that roll smoothly", ("No. 1", "No. 2")),
    "jacket": Product("Jacket", "Clothing", "soft shell fabric", "a two-way zip", ("Cut A", "Cut B")),
    "notebook": Product("Notebook", "Stationery", "acid-free paper", "a ribbon and an elastic band", ("A5", "B5")),
    "hat": Product("Hat", "Clothing", "washable felt", "an adjustable band", ("Size 1", "Size 2")),
    "chair": Product("Folding Chair", "Furniture", "light aluminium", "a frame that folds flat", ("Type 1", "Type 2")),
    "speaker": Product("Speaker", "Electronics", "moulded housing", "twelve hours of play", ("10 W", "12 W")),
    "towel": Product("Towel", "Textiles", "combed cotton", "a hanging loop", ("70 cm", "80 cm")),
}


def stock(count: int, seed: int) -> list[Item]:
    """The shop's items: `count` of them, in families of 4 to 8, each family over all intents of its product.

    Half of the families give every twin the same title; the others tell twins apart by a size or variant that says
    nothing of purpose. Equal arguments give equal items.

    Raises:
        InputError: fewer items than one family a product.
    """
    fewest = _TWINS[0] * len(PRODUCTS)
    if count < fewest:
        raise InputError(f"the shop cannot have {count} items; --shop.items must be at least {fewest}.")
    rng = np.random.default_rng([seed, 1])
    sizes = _family_sizes(count, rng)
    names = [f"{brand} {line}" for brand in _BRANDS for line in _RANGES]
    # Within a product no two families share a name; between products they do, as brands' ranges do.
    order = {product: rng.permutation(len(names)) for product in PRODUCTS}
    items: list[Item] = []
    for index, size in enumerate(sizes):
        product, number = list(PRODUCTS)[index % len(PRODUCTS)], index // len(PRODUCTS)
        items += _family(product, number, names[order[product][number % len(names)]], size, rng)
    return items


def _family_sizes(count: int, rng: np.random.Generator) -> list[int]:
    smallest, largest = _TWINS
    sizes = [smallest] * len(PRODUCTS)
    while count - sum(sizes) >= smallest:
        sizes.append(int(rng.integers(smallest, min(largest, count - sum(sizes)) + 1)))
    for index in range(count - sum(sizes)):  # what is left is less than a family
        sizes[index] += 1
    return sizes


def _family(product: str, number: int, name: str, size: int, rng: np.random.Generator) -> list[Item]:
    kind, family = PRODUCTS[product], f"{product}-{number + 1:02d}"
    brand = name.split()[0]
    intents = [intent for intent, of in INTENTS.items() if product in of.journey]
    first = int(rng.integers(len(intents)))
    chosen = rng.permutation([intents[(first + twin) % len(intents)] for twin in range(size)])
    told_apart = number % 2 == 1
    description = (
        f"{kind.noun} from the {name} range, made of {kind.material}, with {kind.feature}. "
        "Designed to last and easy to care for."
    )
    items = []
    for twin, intent in enumerate(map(str, chosen), start=1):
        variant = kind.variants[int(rng.integers(len(kind.variants)))]
        attributes = [kind.material, kind.feature.removeprefix("a ").removeprefix("an ")]
        if rng.random() < HINT_SHARE:
            attributes.append(str(rng.choice(INTENTS[intent].hints)))
        items.append(
            Item(
                f"{family}-{twin}", f"{name} {kind.noun}" + (f", {variant}" if told_apart else ""), description, brand,
                [kind.department, kind.noun], attributes, family, product, intent, INTENTS[intent].scene,
            )
        )
    return items
