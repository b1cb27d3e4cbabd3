"""One metadata record of Amazon Reviews 2014, 2018 or 2023 as an item of the catalogue."""

import re
from collections.abc import Iterable
from typing import Any

from tessera.catalog.raw import clean, clean_list, unescape

_TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
# Up to the next opening of the same kind at most: a text of openings alone would be read over and over otherwise.
_MARKUP = re.compile(r"<(script|style)\b(?:(?!<\1\b).)*?</\1>", re.DOTALL | re.IGNORECASE)
_LARGEST = ("hi_res", "large", "thumb")


def item_of(item_id: str, record: dict[str, Any], year: int) -> dict[str, Any]:
    """The item: texts without markup, brand, categories, features as attributes, and the URL of its largest photo.

    A title may come out empty: 2018's files have rows whose title is a piece of the page's script ("getTime").
    """
    title = _plain(record.get("title"))
    categories = record.get("category" if year == 2018 else "categories")
    # 2014 lists several paths through the tree; the first is the one that the item is shown under.
    if isinstance(categories, list) and categories and isinstance(categories[0], list):
        categories = categories[0]
    return {
        "item_id": item_id,
        "title": "" if "getTime" in title else title,
        "description": _plain(record.get("description")),
        "brand": _plain(record.get("store" if year == 2023 else "brand")),
        "categories": clean_list([_plain(part) for part in _parts(categories)]),
        "attributes": clean_list([_plain(part) for part in _parts(record.get("features", record.get("feature")))]),
        "image": _photo(record, year),
    }


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        return [part for part in value if isinstance(part, str)]
    return [value] if isinstance(value, str) else []


def _plain(value: Any) -> str:
    text = " ".join(_parts(value))
    if "<" in text or "&" in text:
        text = _TAG.sub(" ", _MARKUP.sub(" ", unescape(text)))
    return clean(text)


def _photo(record: dict[str, Any], year: int) -> str | None:
    if year == 2014:
        found = record.get("imUrl")
    elif year == 2018:
        lists = [record.get(name) or [] for name in ("imageURLHighRes", "imageURL", "image")]
        found = next((urls[0] for urls in lists if isinstance(urls, list) and urls), None)
    else:
        listed = record.get("images")
        photos = [photo for photo in listed if isinstance(photo, dict)] if isinstance(listed, list) else []
        main = next((photo for photo in photos if photo.get("variant") == "MAIN"), photos[0] if photos else {})
        found = next((main[size] for size in _LARGEST if main.get(size)), None)
    return found if isinstance(found, str) and found.startswith(("http://", "https://")) else None
