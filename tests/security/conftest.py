"""The distribution's Chromium, which opens pages as a reader does and tells what they ran; a registry with bundles."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
import torch

from serving.registry import Registry
from tessera.bundle import load_manifest
from tessera.config import TokenizerSettings
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.bundle import build as build_tokenizer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@dataclass
class Visit:
    """What a page did while it was open."""

    ran: list[str] = field(default_factory=list)
    """What its scripts reported: arguments of the function `ran`, messages of dialogs, uncaught errors."""
    requests: list[str] = field(default_factory=list)
    """Every address it asked for, the page itself left out; `foreign` are those that were refused."""
    foreign: list[str] = field(default_factory=list)
    text: str = ""
    """What a reader sees, and finds in folded parts."""
    html: str = ""
    found: Any = None
    """What the test's own function returned."""


class Browser:
    """One Chromium, in a thread of its own: in the tests' thread, Playwright's loop would bar `asyncio.run`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "browser")
        self._thread.submit(self._start).result()

    def visit(self, url: str, act: Callable[[Any], Any] | None = None, others: Sequence[str] = ()) -> Visit:
        """Open a page in a fresh profile.

        Args:
            url: http: or file: address. Its own origin is the only one that the page reaches.
            act: called in the browser's thread with Playwright's page when it is loaded; its result is `found`.
            others: origins that the page may reach, too, such as "http://127.0.0.1:8000".
        """
        return self._thread.submit(self._visit, url, act, {_origin(url), *others}).result()

    def close(self) -> None:
        self._thread.submit(self._stop).result()
        self._thread.shutdown()

    def _start(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)

    def _stop(self) -> None:
        self._browser.close()
        self._playwright.stop()

    def _visit(self, url: str, act: Callable[[Any], Any] | None, reachable: set[str]) -> Visit:
        visit = Visit()
        context = self._browser.new_context()

        def route(route: Any) -> None:
            asked = route.request.url
            if asked != url:
                visit.requests.append(asked)
            if _origin(asked) in reachable or asked.startswith(("data:", "blob:")):
                route.continue_()
            else:
                visit.foreign.append(asked)
                route.abort()

        def dialog(shown: Any) -> None:
            visit.ran.append(f"dialog: {shown.message}")
            shown.dismiss()

        try:
            context.route("**/*", route)
            context.expose_function("ran", lambda *what: visit.ran.append(" ".join(map(str, what))))
            page = context.new_page()
            page.on("dialog", dialog)
            page.on("pageerror", lambda error: visit.ran.append(f"error: {error}"))
            page.goto(url, wait_until="load")
            if act is not None:
                visit.found = act(page)
            page.wait_for_timeout(50)  # handlers of failed images run after the load
            visit.text, visit.html = page.locator("body").text_content() or "", page.content()
        finally:
            context.close()
        return visit


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The session's one Chromium, started by the first test that asks for it."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    one = Browser()
    yield one
    one.close()


ITEMS = [f"item{i}" for i in range(12)]
MakeHome = Callable[[Path], Path]


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> MakeHome:
    """Make a platform's home at a path: two tiny policies are registered, the first is champion, nothing is trained."""
    from components.promote import promotion
    from components.register import registering
    from components.register.features import TABLES
    from tessera.config import PlatformSettings, PolicySettings, Settings, TokenizerSettings
    from tessera.files import write_json
    from tessera.policy.backbone import build
    from tessera.policy.bundle import save_policy
    from tessera.schema import SCHEMAS, write_table
    from tessera.tokenizer.bundle import Tokenizer
    from tessera.tokenizer.bundle import build as build_tokenizer

    folder = tmp_path_factory.mktemp("made")
    settings = TokenizerSettings(codebook_size=8, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=4)
    tokenizer = Tokenizer(build_tokenizer(settings, 4, 3), settings)
    tokenizer.save(folder / "tokenizer", {"collision_rate_after": 0.0, "utilisation": [0.5]}, "seed 0")
    codes = [[i % 8, i // 8, 0] for i in range(len(ITEMS))]
    fixed = {"moved": False, "tokenizer_version": tokenizer.version}
    sids = [
        {"item_id": item, "sid": "_".join(map(str, row)), "codes": row, **fixed}
        for item, row in zip(ITEMS, codes, strict=True)
    ]
    table = pa.Table.from_pylist(sids, schema=SCHEMAS["sids"])
    for seed in range(2):
        backbone = build(PolicySettings(hidden=16, layers=1, heads=2, text_vocabulary=300), ITEMS, 3, 8, seed)
        said: dict[str, Any] = {"config": {"seed": seed}, "metrics": {}}
        save_policy(folder / f"policy{seed}", backbone, table, codebook_size=8, max_history=5, **said)
    described = {"description": "", "categories": [], "attributes": [], "brand": "", "image_status": "none"}
    made = {"provider": "embedded", "model": "m", "prompt_version": "v1", "status": "ok"}
    rows = {
        "items": [{**described, "item_id": item, "title": item, "image": None} for item in ITEMS],
        "captions": [{**made, "item_id": item, "caption": item} for item in ITEMS],
        "intents": [],
        "quality": [],
        "sids": sids,
        "splits": [{"user_id": "ann", "train": ITEMS[:2], "validation": ITEMS[2], "test": ITEMS[3]}],
    }
    for name, content in rows.items():
        write_table(name, pa.Table.from_pylist(content, schema=SCHEMAS[name]), folder / f"{name}.parquet")
    write_json(folder / "evaluation.json", {"test": {}, "validation": {}, "popularity": {}})

    def make(home: Path) -> Path:
        paths = {name: folder / f"{name}.parquet" for name in TABLES}
        for number in range(2):
            registering.run(
                paths, folder / "tokenizer", folder / f"policy{number}", folder / "evaluation.json", Settings(),
                str(home), folder / "versions.json",
            )  # fmt: skip
            if number == 0:
                promotion.promote(home, PlatformSettings())
        return home

    return make


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[Path], Path]:
    """Write a tokenizer bundle that was never fitted."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        sizes = TokenizerSettings(codebook_size=8, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=4)
        Tokenizer(build_tokenizer(sizes, 4, 3), sizes).save(folder, {}, "f")
        return folder

    return make


@pytest.fixture(scope="session")
def made_home(make_home: MakeHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home that tests share: whoever changes it copies it first."""
    return make_home(tmp_path_factory.mktemp("home") / "home")


@pytest.fixture(scope="session")
def registered(
    tmp_path_factory: pytest.TempPathFactory, make_policy: Callable[..., Path], make_tokenizer: Callable[[Path], Path]
) -> tuple[Path, Registry]:
    """A registry in the folder "home" with a tokenizer and, as versions 1 and 2, the policies a and b beside it."""
    folder = tmp_path_factory.mktemp("registered")
    version = load_manifest(make_tokenizer(folder / "t"), "tokenizer").version
    registry = Registry(folder / "home")
    registry.register_tokenizer(folder / "t")
    for seed, name in enumerate("ab"):
        registry.register_policy(make_policy(folder / name, seed=seed, version=version))
    return folder, registry
