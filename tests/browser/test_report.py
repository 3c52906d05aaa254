"""The HTML report in a real browser: what it shows, what pressing does, and that it complains about nothing."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from tests.comparison.synthetic import make_run, prediction, write_evaluation
from vlmexp.comparison.reading import find_runs
from vlmexp.comparison.rows import make_rows, mark_differences, sort_rows
from vlmexp.runs import NOT_IN_KEY

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DASH = "\N{EN DASH}"
EVIL = "</script><script>document.title='broken into'</script><img src=x onerror=\"document.title='x'\"> & 漢字 🦊"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Four runs and a failed one, 500 examples with images, and text that is out to do harm."""
    from vlmexp.comparison.report import build_report

    folder = tmp_path_factory.mktemp("runs")
    media = folder / "data" / "media"
    media.mkdir(parents=True)
    for number in range(100):
        Image.effect_noise((320, 240), 40 + number % 60).save(media / f"{number}.png")
    for index in range(4):
        options = {"peft.r": 4 * 2 ** (index // 2), "train.learning_rate": [1e-3, 1e-4][index % 2]}
        run = make_run(folder / f"{index}-{'long-name-' * 6}", options, losses=[3 / (step + 1) for step in range(30)])
        rows = [
            prediction(number, (number + index) % 10 < 5 + index, images=[f"media/{number % 100}.png"])
            for number in range(500)
        ]
        rows[0] |= {"question": EVIL, "prediction": EVIL, "id": "test-" + "0" * 200}
        write_evaluation(run, "finetuned", rows)
        base = [prediction(number, number % 10 == 9) for number in range(500)]
        base[0] |= {"question": EVIL, "prediction": EVIL, "id": rows[0]["id"]}
        write_evaluation(run, "base", base)
    make_run(folder / "failed", {"peft.r": 64}, [], status="failed", error="OutOfMemoryError: 80 GiB is not enough")
    rows = make_rows(find_runs([folder], 300), "finetuned")
    mark_differences(rows, "finetuned")
    page = build_report(
        sort_rows(rows, "vqa_accuracy"),
        "vqa_accuracy",
        "finetuned",
        NOT_IN_KEY,
        folder / "data",
        max_examples=500,
        seed=0,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, report):
    """Open the report; on leaving the test neither an error nor a request to anywhere may have been seen."""
    pages, complaints = [], []

    def open_page(width: int = 1280, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, locale="en-US")
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
        page.goto(report.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def cells(page, column: int) -> list[str]:
    return page.locator(f"#leaderboard tbody tr td:nth-child({column})").all_inner_texts()


def scroll_to(page, plot: str) -> None:
    """A plot is drawn when it comes into view."""
    page.locator(f"#{plot}").scroll_into_view_if_needed()
    page.locator(f"#{plot} .main-svg").first.wait_for()


def test_the_file_is_of_moderate_size(report):
    assert report.stat().st_size < 15_000_000


@pytest.mark.parametrize("width", [1280, 390])
def test_long_names_leave_the_curves_their_place(width, opened):
    page = opened(width)
    scroll_to(page, "curves")
    boxes = [page.locator(f"#curves .{name}").first.bounding_box() for name in ("nsewdrag", "legend .bg", "xtitle")]
    plot, legend, title = boxes
    assert plot["width"] > 0.6 * width
    assert legend["x"] > plot["x"] + plot["width"] or legend["y"] >= title["y"] + title["height"]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_its_scheme(width, scheme, opened):
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    wider = "cells => cells.filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.innerText)"
    assert page.eval_on_selector_all("#leaderboard td:has(.score)", wider) == []
    scroll_to(page, "curves")
    assert page.locator("#curves .plot .scatterlayer .trace").count() == 5
    scroll_to(page, "heatmap")
    assert page.locator("#heatmap .plot .heatmaplayer").count() == 1
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


def test_the_leaderboard_sorts(opened):
    page = opened()
    assert [name[0] for name in cells(page, 1)] == ["3", "2", "1", "0", "f"]
    page.click("#leaderboard th button:text-is('learning_rate')")
    page.click("#leaderboard th button:text-is('learning_rate')")
    assert [float(text) for text in cells(page, 4)] == [0.0001] * 2 + [0.001] * 3
    page.click("#leaderboard th button:text-is('run')")
    assert [name[0] for name in cells(page, 1)] == ["0", "1", "2", "3", "f"]
    assert page.locator("#leaderboard th[aria-sort=ascending]").inner_text().startswith("run")
    assert "OutOfMemoryError: 80 GiB is not enough" in page.locator("#leaderboard").inner_text()


def test_curves_and_heat_map_follow_their_choice(opened):
    page = opened()
    scroll_to(page, "curves")
    scroll_to(page, "heatmap")
    title = "#curves .plot .ytitle"
    assert page.locator(title).text_content() == "eval loss"
    page.select_option("#curves select", "samples_per_s")
    assert page.locator(title).text_content() == "samples per s"
    assert page.locator("#heatmap .plot .xtitle").text_content() == "learning_rate"
    assert page.locator("#heatmap .plot .xtick text").all_text_contents() == ["0.0001", "0.001"]
    assert page.locator("#heatmap .plot").inner_text().count("n=1") == 4
    page.locator("#heatmap select").nth(1).select_option("peft.r")
    assert page.locator("#heatmap .plot .xtitle").text_content() == "r"


def test_examples_are_filtered_searched_and_turned(opened):
    page = opened()
    cards, count = page.locator("#examples .card"), page.locator("#examples .count")
    assert cards.count() == 24
    assert count.inner_text() == f"1{DASH}24 of 500 examples"
    page.click("#examples .pages button:text-is('next →')")
    assert count.inner_text() == f"25{DASH}48 of 500 examples"
    counts = {
        "fixed by fine-tuning": 350,
        "broken by it": 0,
        "wrong before and after": 100,
        "right before and after": 50,
    }
    for name, number in counts.items():
        button = page.locator("#examples .filters button", has_text=name)
        assert button.inner_text().endswith(f" {number}")
        button.click()
        shown = f"of {number} examples" if number else "No example is like that."
        assert shown in count.inner_text()
    page.locator("#examples .filters button", has_text="all").click()
    page.fill("#examples input", "picture 123?")
    assert count.inner_text() == f"1{DASH}1 of 1 examples"
    assert "test-123" in cards.inner_text()
    page.select_option("#examples select", "3")
    page.fill("#examples input", "")
    assert page.locator("#examples .filters button", has_text="fixed").inner_text() == "fixed by fine-tuning 250"


def test_images_are_shown(opened):
    page = opened(390)
    image = page.locator("#examples .card img").nth(2)
    image.scroll_into_view_if_needed()
    assert image.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 160


def test_text_stays_text(opened):
    page = opened()
    page.fill("#examples input", "script")
    card = page.locator("#examples .card")
    assert card.locator("h3").inner_text() == EVIL
    assert EVIL in card.locator("dl").first.inner_text()
    assert page.title().startswith("5 runs")
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_two_runs_are_told_apart(opened):
    page = opened()
    selects = page.locator("#diff select")
    selects.nth(0).select_option("0")
    selects.nth(1).select_option("3")
    text = page.locator("#diff table").inner_text().split()
    assert text[text.index("peft.r") + 1 :][:2] == ["8", "4"]
    selects.nth(1).select_option("0")
    assert "Nothing that is recorded differs." in page.locator("#diff table").inner_text()
