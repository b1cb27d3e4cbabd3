"""Photo URLs to files: bounded concurrency, resumed downloads, and failures that are counted instead of fatal.

A URL comes from whoever wrote the catalogue. Neither it nor a redirect may lead into a private network, where this
machine reaches more than the writer does, unless `catalogue.private_addresses` allows it.
"""

import asyncio
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tqdm import tqdm

from tessera.catalog.images import MAX_BYTES, SUFFIXES, is_photo
from tessera.event_loop import run_to_end

if TYPE_CHECKING:
    import httpx

CONCURRENCY = 16
TRIES = 3
TIMEOUT_S = 20.0
"""Longest silence of a server."""
DEADLINE_S = 120.0
"""For one photo, all tries together: a server that sends a byte now and then does not hold up the rest."""
_PAUSE_S = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """`names[i]` is the file of the i-th URL (None without one); `corrupt` names what came and is no photo."""

    names: list[str | None]
    corrupt: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)


def is_url(text: str | None) -> bool:
    """Whether a photo is to be downloaded."""
    return bool(text) and str(text).lower().startswith(("http://", "https://"))


def store_for(preferred: Path | None, otherwise: Path) -> Path:
    """Where downloads are kept: beside the source, so that every run finds them, or in the run if that is read-only."""
    if preferred is None:
        return otherwise
    try:
        preferred.mkdir(parents=True, exist_ok=True)
    except OSError:
        return otherwise
    return preferred if os.access(preferred, os.W_OK) else otherwise


def file_name(item_id: str, url: str) -> str:
    """File name of an item's photo: the id, safe on any file system, with the URL's suffix."""
    suffix = PurePosixPath(re.split(r"[?#]", url)[0]).suffix.lower()
    return re.sub(r"[^A-Za-z0-9._-]", lambda m: f"%{ord(m[0]):x}", item_id) + (suffix if suffix in SUFFIXES else ".jpg")


def fetch_all(
    urls: list[str | None], item_ids: list[str], folder: Path, allowed: bool = True, private: bool = False
) -> Fetched:
    """Download each item's photo into `folder`; whole files already there are kept, partial ones are continued.

    A photo that is not to be had is no error: it is simply not in the folder afterwards, and the next run asks again.

    Args:
        allowed: download at all.
        private: also from addresses of private networks.

    Returns counts: {"photos_downloaded", "photos_on_disk", "photos_not_found", "photos_failed"}; "not found" is the
        server's word (404, 410), "failed" anything else, of which the first is logged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [file_name(item, url) if url and is_url(url) else None for item, url in zip(item_ids, urls, strict=True)]
    wanted = {name: url for name, url in zip(names, urls, strict=True) if name and url}
    missing = {name: url for name, url in wanted.items() if not (folder / name).is_file()}
    outcomes = Counter({"photos_on_disk": len(wanted) - len(missing)})
    corrupt: set[str] = set()
    if missing and allowed:
        reasons = []
        for name, outcome, reason in run_to_end(_fetch_each(missing, folder, private)):
            outcomes[f"photos_{outcome}"] += 1
            if outcome == "corrupt":
                corrupt.add(name)
            if reason:
                reasons.append(f"{missing[name]}: {reason}")
        if reasons:
            _log.warning("%d photos could not be downloaded; the first: %s", len(reasons), reasons[0])
    return Fetched(names, corrupt, dict(outcomes))


async def _fetch_each(urls: dict[str, str], folder: Path, private: bool) -> list[tuple[str, str, str]]:
    from tessera.catalog.public_network import open_client

    results: list[tuple[str, str, str]] = []
    waiting = iter(urls.items())
    with tqdm(total=len(urls), desc="downloading photos", unit="photo", disable=None) as bar:
        async with open_client(TIMEOUT_S, CONCURRENCY, private) as client:

            async def work() -> None:
                for name, url in waiting:
                    results.append((name, *await _fetch_in_time(client, url, folder / name)))
                    bar.update()

            await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return results


async def _fetch_in_time(client: "httpx.AsyncClient", url: str, target: Path) -> tuple[str, str]:
    try:
        return await asyncio.wait_for(fetch(client, url, target), DEADLINE_S)
    except asyncio.TimeoutError:
        return "failed", f"it took longer than {DEADLINE_S:.0f} s"


async def fetch(client: "httpx.AsyncClient", url: str, target: Path) -> tuple[str, str]:
    """Download one photo. Returns (outcome, reason): "downloaded", "corrupt", "not_found" or "failed"."""
    import httpx

    partial = target.parent / ".partial" / target.name
    partial.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(_PAUSE_S * 2**attempt)
        try:
            reason, final = await _transfer(client, url, partial)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects, ValueError) as error:
            reason, final = f"the URL cannot be used ({error})", True
        except (httpx.HTTPError, httpx.StreamError) as error:
            reason, final = f"{type(error).__name__} {error}".strip(), False
        if not reason:
            if await asyncio.to_thread(is_photo, partial):
                partial.replace(target)
                return "downloaded", ""
            partial.unlink(missing_ok=True)  # what is continued next time must not be this
            reason = "the answer is not a photo"
        elif final:
            break
    if reason in ("404", "410"):
        return "not_found", ""
    return ("corrupt" if reason == "the answer is not a photo" else "failed"), reason


async def _transfer(client: "httpx.AsyncClient", url: str, partial: Path) -> tuple[str, bool]:
    """Complete `partial`. Returns (reason, final): no reason is success, final says that trying again is of no use."""
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    # A compressed body would make byte ranges and lengths mean something else.
    async with client.stream("GET", url, headers={"Accept-Encoding": "identity", **headers}) as response:
        if response.status_code == 416:  # the part is not a beginning of what is there now
            partial.unlink(missing_ok=True)
            return "the part on disk does not fit", False
        if response.status_code not in (200, 206):
            passing = response.status_code >= 500 or response.status_code in (408, 425, 429)
            return str(response.status_code), not passing
        answered = response.headers.get("content-range", "")
        continued = response.status_code == 206 and answered.startswith(f"bytes {have}-")
        if response.status_code == 206 and not continued:
            partial.unlink(missing_ok=True)
            return "the server answered another range", False
        size = have if continued else 0
        with partial.open("ab" if continued else "wb") as file:
            async for block in response.aiter_bytes():
                size += len(block)
                if size > MAX_BYTES:
                    partial.unlink(missing_ok=True)
                    return f"larger than {MAX_BYTES >> 20} MiB", True
                file.write(block)
    return "", True
