"""Every page of the built site, looked at in a real Chromium: `make site-test`.

It needs build/site (`make site`), Playwright, Debian's `chromium` or another Chromium, and
axe-core, which `make site-test` fetches into .venv/axe. Without one of them it fails: it is
not part of `make test`, so whoever starts it wants it to run.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_pages import broken

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("DLCOURSE_SITE", ROOT / "build" / "site")).resolve()
AXE = Path(
    os.environ.get("DLCOURSE_AXE", ROOT / ".venv/axe/node_modules/axe-core/axe.min.js")
)
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PICTURES = ROOT / "build" / "screenshots"
WEIGHT = 1_500_000  # bytes, as they lie on the disk
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SERIOUS = {"serious", "critical"}
LOOKED_AT = (
    "index.html",
    "chapters/11_gradient_accumulation.html",
    "symptoms.html",
    "verdicts.html",
    "api/gradient_clipping.html",
)

# Brings every picture of the page in, also those further down, and waits for them.
ALL_PICTURES = """async () => {
    const pictures = [...document.images];
    for (const picture of pictures) { picture.loading = "eager"; }
    await Promise.all(pictures.map((picture) => picture.decode().catch(() => {})));
    return pictures.filter((picture) => !picture.naturalWidth).map((picture) => picture.src);
}"""
FORMULAS = """() => [...document.querySelectorAll(".math")]
    .filter((place) => !place.querySelector(".katex-html") || place.querySelector(".katex-error")
        || !place.getBoundingClientRect().width)
    .map((place) => place.textContent)"""
WITHOUT_WORDS = """() => [...document.querySelectorAll("article img")]
    .filter((picture) => (picture.alt || "").length < 20).map((picture) => picture.src)"""
WITHOUT_CAPTION = """() => [...document.querySelectorAll(".cell_output img")]
    .filter((picture) => {
        const words = picture.closest("figure")?.querySelector("figcaption")?.textContent || "";
        const plain = (text) => text.replace(/[^a-z0-9]/gi, "");
        return !plain(words).startsWith(plain(picture.alt));
    }).map((picture) => picture.alt)"""
TOO_WIDE = """() => {
    const wide = document.documentElement.scrollWidth;
    if (wide <= innerWidth) { return []; }
    const scrolls = (part) => part && part !== document.body && part !== document.documentElement
        && (getComputedStyle(part).overflowX !== "visible" || scrolls(part.parentElement));
    return [...document.body.querySelectorAll("*")]
        .filter((part) => part.getBoundingClientRect().right > innerWidth + 1)
        .filter((part) => !scrolls(part.parentElement))
        .slice(0, 5).map((part) => part.outerHTML.slice(0, 150));
}"""
RUN_AXE = """async () => {
    const found = await axe.run(document, { resultTypes: ["violations"] });
    return found.violations.map((rule) => [rule.impact, rule.id,
        rule.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]);
}"""
THEME = """(name) => {
    document.documentElement.dataset.mode = name;
    document.documentElement.dataset.theme = name;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *words) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a server of the site on this machine."""
    assert PAGES, f"{SITE} holds no page: make site"
    serve = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """A Chromium that Playwright drives."""
    from playwright.sync_api import sync_playwright
    from real_jupyterlab import FLAGS, chromium

    path = chromium()
    assert path, "install a Chromium, for example: apt-get install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """One page open in the browser: its errors, its requests, and their bytes."""

    def __init__(self, browser, address: str, name: str, viewport: dict = WIDE):
        self.context = browser.new_context(viewport=viewport)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.bytes = 0
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on(
            "requestfailed", lambda one: self.errors.append(f"failed: {one.url}")
        )
        self.page.on("response", self._weigh)
        self.page.goto(address + name, wait_until="load")

    def _listen(self, message) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.type}: {message.text}")

    def _weigh(self, response) -> None:
        if response.status >= 400:
            self.errors.append(f"{response.status}: {response.url}")
        self.bytes += int(response.headers.get("content-length", 0))

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error) -> None:
        self.context.close()


def test_every_link_and_anchor_leads_somewhere():
    assert broken(SITE) == []


# --- every page -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(browser, address, name):
    """No error, no other host, its weight, its formulas, its pictures, and the phone."""
    with Visit(browser, address, name) as visit:
        assert visit.page.evaluate(ALL_PICTURES) == [], "pictures that do not load"
        assert visit.page.evaluate(FORMULAS) == [], "formulas that are not rendered"
        assert visit.page.evaluate(WITHOUT_WORDS) == [], "pictures without words"
        assert visit.page.evaluate(WITHOUT_CAPTION) == [], "pictures without caption"
        visit.page.set_viewport_size(PHONE)
        assert visit.page.evaluate(TOO_WIDE) == [], "the page scrolls sideways at 390 px"
        assert visit.errors == []
        elsewhere = [
            url for url in visit.requests if not url.startswith((address, "data:"))
        ]
        assert elsewhere == [], "requests to another host"
        assert visit.bytes <= WEIGHT, f"{visit.bytes} bytes"


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious_in_both_themes(browser, address, name):
    serious = []
    with Visit(browser, address, name) as visit:
        visit.page.add_style_tag(content="* { transition: none !important; }")
        visit.page.add_script_tag(path=str(AXE))
        for theme in ("light", "dark"):
            visit.page.evaluate(THEME, theme)
            found = visit.page.evaluate(RUN_AXE)
            serious += [[theme, *rule] for rule in found if rule[0] in SERIOUS]
    assert serious == [], json.dumps(serious, indent=1)[:3000]


# --- search -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("warm-up", "chapters/13_warmup.html"),
        ("梯度裁剪", "chapters/04_gradient_clipping.html"),
        ("裁剪", "chapters/04_gradient_clipping.html"),
        ("clip_grad_norm_", "api/gradient_clipping.html"),
        ("loss is NaN", "symptoms.html"),
    ],
)
def test_search_finds(browser, address, words, wanted):
    """As a reader does it: the button, the words, Enter."""
    with Visit(browser, address, "index.html") as visit:
        visit.page.locator(
            ".search-button__button:visible, .search-button:visible"
        ).first.click()
        visit.page.keyboard.type(words)
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector("#search-results li a", timeout=20_000)
        visit.page.wait_for_timeout(500)
        found = visit.page.locator("#search-results li a").evaluate_all(
            "links => links.map((link) => link.href)"
        )
        assert any(wanted in link for link in found[:10]), found[:10]
        assert visit.errors == []


def test_search_finds_nothing_where_nothing_is(browser, address):
    with Visit(browser, address, "search.html?q=zebrafish") as visit:
        visit.page.wait_for_timeout(1500)
        assert visit.page.locator("#search-results li a").count() == 0


# --- what a reader does -----------------------------------------------------------------


def test_the_theme_can_be_switched_and_figures_keep_their_paper(browser, address):
    with Visit(browser, address, LOOKED_AT[1]) as visit:
        html = visit.page.locator("html")
        for theme in ("dark", "light", "dark"):
            visit.page.locator(".theme-switch-button:visible").first.click()
            visit.page.locator(f".theme-change-button[data-mode={theme}]:visible").click()
            assert html.get_attribute("data-theme") == theme
        paper = visit.page.locator(".cell_output img").first.evaluate(
            "picture => getComputedStyle(picture).backgroundColor"
        )
        assert paper == "rgb(255, 255, 255)"


def test_a_drawing_cell_is_folded_and_opens(browser, address):
    with Visit(browser, address, LOOKED_AT[1]) as visit:
        folded = visit.page.locator("details.hide").first
        code = folded.locator("pre").first
        assert not code.is_visible()
        folded.locator("summary").click()
        assert code.is_visible() and "show(" in code.inner_text()


def test_on_a_phone_the_menu_opens_and_leads_to_a_chapter(browser, address):
    with Visit(browser, address, "index.html", PHONE) as visit:
        visit.page.locator("button.primary-toggle:visible").first.click()
        link = visit.page.locator(".bd-sidebar-primary a, dialog a", has_text="Glossary")
        link.locator("visible=true").first.click()
        visit.page.wait_for_url("**/glossary.html")


def test_on_a_phone_a_figure_is_large_enough_to_read(browser, address):
    with Visit(browser, address, LOOKED_AT[1], PHONE) as visit:
        visit.page.evaluate(ALL_PICTURES)
        figure = visit.page.locator(".picture").first
        assert figure.locator("img").bounding_box()["width"] >= 500
        assert figure.bounding_box()["width"] <= PHONE["width"]


def test_on_paper_the_page_is_the_text(browser, address):
    with Visit(browser, address, LOOKED_AT[1]) as visit:
        visit.page.evaluate(ALL_PICTURES)
        visit.page.emulate_media(media="print")
        for part in (".doors-of-chapter", ".bd-sidebar-primary", ".prev-next-footer"):
            assert not visit.page.locator(part).first.is_visible(), part
        assert visit.page.locator("article figure img").first.is_visible()


def test_the_site_works_from_a_folder_without_a_server(browser):
    with Visit(browser, SITE.as_uri() + "/", LOOKED_AT[1]) as visit:
        assert visit.page.evaluate(ALL_PICTURES) == []
        assert visit.page.evaluate(FORMULAS) == []
        assert visit.errors == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_take_a_picture(browser, address, name, size):
    """Five pages at two widths, and one in the dark, for a person to look at."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    stem = name.replace("/", "_").removesuffix(".html")
    with Visit(browser, address, name, size) as visit:
        visit.page.evaluate(ALL_PICTURES)
        visit.page.wait_for_timeout(300)
        file = PICTURES / f"{stem}_{size['width']}.png"
        visit.page.screenshot(path=file)
        visit.page.evaluate(THEME, "dark")
        visit.page.wait_for_timeout(700)  # the colours change slowly
        visit.page.screenshot(path=PICTURES / f"{stem}_{size['width']}_dark.png")
    assert file.stat().st_size > 10_000
