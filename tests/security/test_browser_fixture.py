"""The browser sees what the tests of pages rely on: scripts that run, and requests that leave the page's origin."""

import asyncio
from pathlib import Path
from typing import Any


def test_scripts_and_foreign_requests_are_seen(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "own.css").write_text("p { color: red }")
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel=stylesheet href=own.css><script src="https://cdn.example/x.js"></script>'
        "<p>hello <img src=nowhere onerror=\"ran('image')\"><script>ran('script'); alert('box'); null.x</script>"
        "<a id=link href=\"javascript:ran('link')\">go</a>"
    )
    visit = browser.visit(page.as_uri(), lambda tab: tab.click("#link") or tab.title())
    assert {"image", "script", "dialog: box", "link"} <= set(visit.ran)
    assert any(what.startswith("error: ") for what in visit.ran)
    assert visit.foreign == ["https://cdn.example/x.js"]
    assert (tmp_path / "own.css").as_uri() in visit.requests
    assert "hello" in visit.text
    assert visit.found == ""
    asyncio.run(asyncio.sleep(0))  # other tests of the process still have a loop of their own
