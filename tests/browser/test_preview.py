"""The preview's page in a real browser: it fits, it answers to a finger, and nothing in it runs."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "</script><script>document.title='broken into'</script><img src=x onerror=\"document.title='x'\"> & 漢字 🦊"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page_file(compose, tmp_path):
    """Images of several sizes, a question that is too long, one that is out to do harm, and a broken image."""
    from vlmexp.preview.stage import preview
    from vlmexp.runs import Run

    rows = []
    for number in range(24):
        Image.effect_noise((60 + 8 * number, 200 - 6 * number), 40).save(tmp_path / f"{number}.png")
        for question in ("what is it?", EVIL if number == 0 else "is it red? " * (1 + 12 * (number == 1))):
            rows.append({"image": f"{number}.png", "question": question, "answer": ["yes", "yes", "no"]})
    (tmp_path / "broken.png").write_text("no image")
    rows.append({"image": "broken.png", "question": "what?", "answer": "a"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = compose(
        "stage=preview", "threads=1", "dataset=files", f"dataset.options.train={tmp_path / 'train.jsonl'}",
        "dataset.validation_fraction=0", "dataset.test_fraction=0", "dataset.on_bad_sample=skip",
        "collator.max_length=110", "collator.overlong=shorten_text",
        "preview.ids=[train-1,train-3,train-20,train-40]",
    )  # fmt: skip
    with Run.open(tmp_path / "run", config, []) as run:
        preview(config, run)
    return tmp_path / "run" / "preview.html"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page(width, scheme, browser, page_file):
    complaints = []
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, locale="en-US")
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
    page.goto(page_file.as_uri())

    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert page.title() == "vlmexp:tiny on files, train split"
    assert page.locator("nav a").all_inner_texts() == ["Data", "Too long", "Left out", "Rows"]
    assert page.locator("#lengths .bin").count() > 1
    assert page.locator("#sizes .dot").count() == 24
    assert "broken.png" in page.locator("#left li").inner_text()

    rows = page.locator("#rows .row")
    assert rows.count() == 4
    assert rows.first.locator("h3").inner_text() == "2 questions about the media of train-1"
    assert rows.first.locator(".segment").first.inner_text() == "shared prefix"
    assert rows.first.locator(".segment").nth(1).inner_text() == "train-1 (accepted: yes (2 times), no)"
    assert "document.title='broken into'" in rows.first.locator("pre").text_content()
    assert rows.first.locator(".token.trained").all_inner_texts() == ["yes", "<|im_end|>"] * 2
    image = rows.first.locator("img")
    assert image.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") > 32

    token = rows.first.locator(".token.trained").first
    token.scroll_into_view_if_needed()
    token.click()
    assert page.locator("#tip").inner_text().startswith('trained: "yes", id ')
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    page.close()
    assert complaints == []
