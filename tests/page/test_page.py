# SPDX-License-Identifier: AGPL-3.0-only
"""The page in a real Chromium: both languages, a phone, the keyboard, its functions, no requests to other hosts."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo, group_photo, text_page
from photos import jpeg
from service import KEY, Service, running

if TYPE_CHECKING:
    from playwright import sync_api as sync
else:
    sync = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")

Open = Callable[..., "sync.Page"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("page")
    build(folder / "cache")
    both = Image.new("RGB", (900, 1000), "white")
    both.paste(group_photo((900, 700), [1, 2, 3], seed=1)[0], (0, 0))
    both.paste(text_page(["Hello world"], (900, 300))[0], (0, 700))
    (folder / "people.jpg").write_bytes(jpeg(both))
    (folder / "second.jpg").write_bytes(jpeg(group_photo((900, 700), [2, 5], seed=4)[0]))
    (folder / "green.jpg").write_bytes(jpeg(colour_photo("green", (640, 480))))
    (folder / "notes.txt").write_text("no photo")
    with running(folder, demo_environment(folder / "cache")) as started:
        yield started


@pytest.fixture(scope="module")
def chromium() -> Iterator["sync.Browser"]:
    with sync.sync_playwright() as playwright:
        sync.expect.set_options(timeout=20_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: "sync.Browser", service: Service) -> Iterator[Open]:
    """Opens the page with a key; fails if a script fails or a request goes to another host. options: the browser's."""
    contexts, wrong = [], list[str]()

    def opened(key: str | None = KEY, url: str = service.url, **options: Any) -> "sync.Page":
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
        allowed = (url, "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(allowed) else wrong.append(asked.url))
        page.goto(url)
        if key is not None:
            page.fill("#key", key)
            page.press("#key", "Enter")
            page.wait_for_selector("#models td" if key == KEY else "#refused:visible")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def photo_of(service: Service, name: str) -> str:
    return str(service.log.parent / name)


def test_without_the_key_it_says_what_to_type_in_the_browsers_language_or_the_other(
    open_page: Open, service: Service
) -> None:
    page = open_page(key=None, locale="en-GB")
    english = page.inner_text("main")
    assert page.title() == "MT Photos recognition service"
    assert page.inner_text("#address") == service.url
    assert "512" in page.inner_text("dl")
    assert page.is_visible("#demo")
    assert not page.is_visible("#inside")
    page.click("#language")
    chinese = page.inner_text("main")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert not re.search(r"undefined|\[object", english + chinese)
    words = page.evaluate("Object.fromEntries(Object.entries(WORDS).map(([l, w]) => [l, Object.keys(w)]))")
    assert sorted(words["zh"]) == sorted(words["en"])
    assert open_page(key=None, locale="zh-CN").inner_text("main") == chinese


def test_a_wrong_key_is_reported_and_the_right_one_opens_the_page(open_page: Open) -> None:
    page = open_page(key="wrong", locale="en-US")
    assert page.inner_text("#refused") == "The key is wrong."
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    page.wait_for_selector("#models td")
    assert page.locator("#models tr").count() == 7
    assert page.evaluate("localStorage.length") == 0, "the key is kept in the tab only"
    page.reload()
    page.wait_for_selector("#models td")
    page.click("#leave")
    page.wait_for_selector("#login:visible")


def test_a_photo_can_be_tried_and_its_faces_and_text_are_drawn(open_page: Open, service: Service) -> None:
    page = open_page(locale="en-US")
    page.set_input_files("#photo", photo_of(service, "people.jpg"))
    page.wait_for_selector("#faces li")
    assert page.locator("#faces li").count() == page.locator("rect.face").count() == 3
    assert page.locator("rect.line").count() >= 1
    assert "Hello" in page.inner_text("#text")
    drawn, shown = page.locator("rect.face").first.bounding_box(), page.locator("#picture").bounding_box()
    assert drawn
    assert shown
    assert shown["x"] <= drawn["x"] <= drawn["x"] + drawn["width"] <= shown["x"] + shown["width"]
    assert page.locator("#timing td").count() == 15
    page.set_input_files("#second", photo_of(service, "second.jpg"))
    page.wait_for_selector("#compared td")
    assert page.inner_text("#compared").count("the same person") == 1
    page.set_input_files("#photo", photo_of(service, "green.jpg"))
    page.wait_for_selector("#text li")
    page.fill("#words", "red，绿色, blue")
    page.press("#words", "Enter")
    page.wait_for_selector("#ranked td")
    assert page.inner_text("#ranked td >> nth=0") == "绿色"


def test_a_file_that_is_no_photo_gets_a_message(open_page: Open, service: Service) -> None:
    page = open_page(locale="en-US")
    page.set_input_files("#photo", photo_of(service, "notes.txt"))
    page.wait_for_selector("#text li")
    assert "not a photo" in page.inner_text("#text")
    page.click("summary")
    sync.expect(page.locator("#errors")).to_contain_text("not a photo")


def test_tasks_that_are_off_are_not_shown_and_an_open_service_asks_for_no_key(
    open_page: Open, service: Service, tmp_path: Path
) -> None:
    settings = {**demo_environment(service.log.parent / "cache"), "TASKS": "ocr", "API_AUTH_KEY": "no-key"}
    with running(tmp_path, settings) as other:
        page = open_page(None, other.url, locale="en-US")
        page.wait_for_selector("#models td")
        assert not page.is_visible("#login")
        assert page.locator("#models tr").count() == 3
        assert "search (clip), faces (faces)" in page.inner_text("#off")
        page.set_input_files("#photo", photo_of(service, "people.jpg"))
        sync.expect(page.locator("#text")).to_contain_text("Hello world")
        assert page.locator("#timing tr").count() == 2
        assert not any(page.is_visible(hidden) for hidden in ("#compare", "#search", "#faces h3"))


def test_buttons_load_and_unload_models_and_restart_the_service(open_page: Open, service: Service) -> None:
    page = open_page(locale="en-US")
    unload, load = (page.locator(f'button[aria-label="{verb} clip textual"]') for verb in ("Unload", "Load"))
    sync.expect(unload.or_(load)).to_be_visible()
    if unload.is_visible():
        unload.click()
    load.click()
    sync.expect(unload).to_be_visible()
    before = service.pid
    page.click("#restart")
    sync.expect(page.locator("#said")).to_have_text("Restarted.", timeout=30_000)
    assert service.pid != before


def test_it_can_be_used_with_the_keyboard_alone(open_page: Open, service: Service) -> None:
    page = open_page(key=None, locale="en-US")

    def reach(element: str) -> None:
        for _ in range(40):
            if page.evaluate("document.activeElement && document.activeElement.id") == element:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{element} can't be reached")

    reach("key")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#models td")
    reach("drop")
    with page.expect_file_chooser() as chosen:
        page.locator("#drop").press("Enter")
    chosen.value.set_files(photo_of(service, "people.jpg"))
    page.wait_for_selector("#faces li")
    reach("words")
    page.keyboard.type("green")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ranked td")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(open_page: Open, service: Service, scheme: str) -> None:
    page = open_page(locale="zh-CN", viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    page.set_input_files("#photo", photo_of(service, "people.jpg"))
    page.wait_for_selector("#faces li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    color = page.evaluate("getComputedStyle(document.documentElement).color")
    assert (sum(map(int, re.findall(r"\d+", color)[:3])) > 380) == (scheme == "dark")


def test_the_openapi_document_opens_from_the_page(open_page: Open) -> None:
    page = open_page(locale="en-US")
    with page.expect_popup() as opened:
        page.click("#api")
    sync.expect(opened.value.locator("body")).to_contain_text('"/clip/txt"')


def test_files_that_are_not_used_are_shown_and_deleted(open_page: Open, service: Service) -> None:
    old = Path(service.log.parent, "cache", "clip", "ViT-B-32__openai", "visual")
    old.mkdir(parents=True)
    (old / "model.onnx").write_bytes(bytes(2_000_000))
    page = open_page(locale="en-US")
    page.click("#find-unused")
    page.wait_for_selector("#unused li")
    assert "clip/ViT-B-32__openai, 2 MB" in page.inner_text("#unused")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#unused button")
    sync.expect(page.locator("#unused")).to_have_text("Deleted.")
    assert not old.exists()


def test_every_action_reports_a_service_that_does_not_answer(open_page: Open, service: Service) -> None:
    page = open_page(locale="en-GB")
    page.context.set_offline(True)
    for press, told in (("#find-unused", "#unused"), ("#measure", "#measured")):
        page.click(press)
        sync.expect(page.locator(told)).to_have_text("The service does not answer.")
    page.set_input_files("#photo", photo_of(service, "people.jpg"))
    for told in ("#text li", "#faces li"):
        sync.expect(page.locator(told)).to_have_text("The service does not answer.")
    page.set_input_files("#second", photo_of(service, "second.jpg"))
    page.fill("#words", "red")
    page.press("#words", "Enter")
    for told in ("#compared", "#ranked"):
        sync.expect(page.locator(told)).to_contain_text("The service does not answer.")
