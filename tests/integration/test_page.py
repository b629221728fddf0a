"""The page at `/ui` in a real Chromium, over the real application and real tables; each view held to axe's rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from shoal.embeddings.models import create_model
from shoal.records import Announcement, Chunk, Embedded, Extraction, Fetched, Position
from shoal.settings import Settings
from shoal.sources.log_producer import LogProducer
from shoal.store.writing import TableWriter
from tests.fixtures.letters import FakeLetters, a_dead_letter
from tests.fixtures.query_side import publish_status, seed, serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

HOSTILE = "<img src=x onerror=\"document.title='taken'\"> <script>document.title='taken'</script>"
expect.set_options(timeout=20_000)
SIZES = {"wide": (1280, 900), "phone": (390, 844)}


@dataclass(frozen=True)
class Site:
    url: str
    settings: Settings
    announced: list[Announcement]
    replayed: Mock


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("page")
    settings, writer, announced = seed(directory, 40)
    _write_hostile(settings, writer, announced[0])
    publish_status(settings)
    letters, out = FakeLetters([a_dead_letter(1), a_dead_letter(2)]), Mock(spec=LogProducer)
    with serving(settings, letters, out) as url:
        yield Site(url, settings, announced, out)


def _write_hostile(settings: Settings, writer: TableWriter, like: Announcement) -> None:
    model = create_model(settings)
    chunk = Chunk(0, f"zebra {HOSTILE} zebra", None, 0, 90, 20)
    extraction = Extraction("TEXT", "text/plain", "utf-8", HOSTILE, (chunk,), '{"fields": []}', "zebra")
    announcement = replace(
        like, position=Position("c", "scraper-notifications", 0, 9999, 0), document_id="prod:zebra_d:<b>&\"'",
        urn="zebra", dataset="zebra_d", data_source="<I>ZEBRA</I>",
    )  # fmt: skip
    vectors = model.embed([chunk.text])
    fetched = Fetched(announcement, "e" * 64, "0" * 32, 90, extraction=extraction)
    writer.apply([Embedded(fetched, model.name, vectors, vectors[0])], [], datetime.now(UTC))


@pytest.fixture(params=sorted(SIZES))
def page(site: Site, chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab at one of the sizes (a phone is dark); a test fails where the page meets an error of its own."""
    width, height = SIZES[request.param]
    scheme = "dark" if request.param == "phone" else "light"
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    found: list[str] = []
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    tab.on("pageerror", lambda error: found.append(str(error)))
    tab.on("console", lambda said: found.append(said.text) if said.type == "error" else None)
    tab.goto(f"{site.url}/ui/")
    yield tab
    context.close()
    assert not found


def _is_whole(page: Page) -> None:
    """No rule of axe's is broken, and nothing runs out of the screen sideways."""
    broken = Axe().run(page).response["violations"]
    assert not [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in broken]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_question_is_answered_and_its_document_opened(page: Page) -> None:
    page.get_by_role("searchbox").fill("hourly load forecast")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("“hourly load forecast”")
    expect(page.locator("ol.hits li").first).to_be_visible()
    assert page.locator("ol.hits mark").count() > 0
    _is_whole(page)
    page.locator("a.hit").first.click()
    expect(page.get_by_role("heading", name="Lineage")).to_be_visible()
    expect(page.locator("dl.facts").first).to_contain_text("scraper-notifications")
    expect(page.locator("section[aria-label=Text] pre").first).not_to_be_empty()
    with page.expect_download() as given:
        page.get_by_role("button", name="The file itself").click()
    assert given.value.path().stat().st_size > 0
    _is_whole(page)


def test_the_address_holds_the_question_and_facets_narrow_it(page: Page, site: Site) -> None:
    source = site.announced[0].data_source
    page.goto(f"{site.url}/ui/#/search?q=forecast&data_source={source}")
    expect(page.get_by_role("checkbox", name=re.compile(f"^{source}"))).to_be_checked()
    expect(page.locator("ol.hits li").first).to_contain_text(source)
    assert all(source in text for text in page.locator("ol.hits li p.about").all_inner_texts())
    page.get_by_role("checkbox", name=re.compile(f"^{source}")).press("Space")
    page.wait_for_function("!location.hash.includes('data_source')")
    expect(page.get_by_role("checkbox", name=re.compile(f"^{source}"))).to_be_focused()
    page.go_back()
    expect(page.get_by_role("checkbox", name=re.compile(f"^{source}"))).to_be_checked()


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    page.goto(page.url + "#/search?q=price")
    expect(page.locator("a.hit").first).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    expect(page.locator("a.hit").first).to_be_focused()
    page.keyboard.press("j")
    expect(page.locator("a.hit").nth(1)).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("o")
    expect(page.get_by_role("heading", name="Operations")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()


def test_what_a_document_says_is_shown_and_never_run(page: Page) -> None:
    page.goto(page.url + "#/search?q=zebra&mode=keyword")
    expect(page.locator("a.hit").first).to_have_text(HOSTILE)
    page.locator("a.hit").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    assert page.locator("main img, main script, main b, main i").count() == 0
    assert "taken" not in page.title().replace(HOSTILE, "")


def test_operations_follow_the_flow_live(page: Page, site: Site) -> None:
    publish_status(site.settings, waiting=7)
    page.goto(page.url + "#/operations")
    waiting = page.locator(".tile", has_text="Waiting").locator(".value")
    expect(waiting).to_have_text("7")
    expect(page.get_by_role("table", name="Actors")).to_contain_text("reader-1")
    _is_whole(page)
    publish_status(site.settings, waiting=1234, health="degraded")
    expect(waiting).to_have_text("1,234")
    expect(page.locator("main")).to_contain_text("Mend the credentials.")
    expect(page.locator("#health")).to_contain_text("degraded")


def test_a_dead_letter_is_replayed_from_the_page(page: Page, site: Site) -> None:
    site.replayed.send.reset_mock()
    page.goto(page.url + "#/operations")
    letters = page.get_by_role("table", name="Dead letters")
    expect(letters).to_contain_text("object_missing")
    letters.get_by_role("button", name="Replay").first.click()
    expect(page.locator("main")).to_contain_text("Announced again")
    assert "scraper-notifications" in [sent.args[0] for sent in site.replayed.send.call_args_list]


def test_nothing_found_says_what_to_do(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/ui/#/search?from=1999-01-01&to=1999-01-02")
    expect(page.locator(".empty")).to_contain_text("Nothing matches")


def test_fixes_are_found_by_their_scraper(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/ui/#/fixes?scraper_name=nobody")
    expect(page.locator(".empty")).to_contain_text("No fix is known")
    _is_whole(page)


def test_the_colours_are_chosen_and_kept(page: Page) -> None:
    page.get_by_role("button", name="Colours: as the system").click()
    page.get_by_role("button", name="Colours: light").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    expect(page.get_by_role("button", name="Colours: dark")).to_be_visible()
