"""The page in headless Chromium: every tab, dial, click and download of the shipped models."""

import itertools
import shutil
import threading
import time
import zipfile
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from noise2map.app.server import AppServer
from noise2map.app.service import AppService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_S = 120
BUSY = ("asking", "waiting", "running", "loading", "sending")


@contextmanager
def browser_page(url, **screen):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        page = browser.new_page(**{"viewport": {"width": 1360, "height": 900}, **screen})
        page.errors, page.foreign = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else page.foreign.append(asked.url))
        page.goto(url)
        page.wait_for_selector("#samples button")
        yield page
        browser.close()


@pytest.fixture(scope="module")
def service():
    service = AppService((), "cpu")
    yield service
    service.close()


@pytest.fixture(scope="module")
def url(service):
    with AppServer(service, port=0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.url
        server.shutdown()


def settle(page):
    began = time.monotonic()
    while any(word in page.text_content("#status") for word in BUSY):
        assert time.monotonic() - began < WAIT_S, page.text_content("#status")
        page.wait_for_timeout(50)
    return page.text_content("#status")


def turn(page, name, value):
    page.eval_on_selector(f"#dials [name={name}]", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def run(page):
    page.click("#run")
    return settle(page)


def tab(page, name):
    page.click(f"#tabs button[data-tab={name}]")
    settle(page)


def download(page, name):
    with page.expect_download() as waiting:
        page.click(f"#links a[download='{name}']")
    return waiting.value.path().read_bytes()


def settings(page):
    import json

    return json.loads(download(page, "settings.json"))


def opacity(page, layer):
    return float(page.eval_on_selector(f"#layer-{layer}", "e => getComputedStyle(e).opacity"))


def png(color=(90, 120, 200), size=(150, 110), kind="PNG"):
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def upload(page, name, content):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    page.wait_for_timeout(100)
    return settle(page)


def box_of(page, selector):
    return page.locator(selector).first.bounding_box()


def on_screen(page, selector):
    box = box_of(page, selector)
    return box["y"] >= 0 and box["y"] + box["height"] <= page.viewport_size["height"]


def middle(box):
    return box["x"] + box["width"] / 2


def check_maps(page):
    tab(page, "segmentation")
    for name, value in (
        ("steps", 4),
        ("samples", 2),
        ("average", "steps"),
        ("sampler", "ddpm"),
        ("sampling", "diffusion"),
        ("seed", 7),
    ):
        turn(page, name, value)
    assert run(page).startswith("done")
    said = settings(page)
    assert (said["steps"], said["samples"], said["average"], said["sampler"], said["seed"]) == (4, 2, "steps", "ddpm", 7)
    for place, (of_map, of_uncertainty) in {0: (0, 0), 1: (1, 0), 2: (1, 1)}.items():
        page.eval_on_selector("#mix", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", place)
        assert (opacity(page, "map"), opacity(page, "uncertainty")) == (of_map, of_uncertainty)
    page.click("#stack", position={"x": 200, "y": 150})
    page.wait_for_selector("#pixel .share")
    player = page.locator("[data-player] img").last
    frames = set()
    for step in range(4):
        page.eval_on_selector("[data-player] input", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", step)
        frames.add(player.get_attribute("src"))
    assert len(frames) > 1
    archive = zipfile.ZipFile(BytesIO(download(page, "all.zip")))
    names = [link.get_attribute("download") for link in page.query_selector_all("#links a")]
    assert sorted([*archive.namelist(), "all.zip"]) == sorted(names)


def check_depth(page):
    tab(page, "depth")
    turn(page, "fov_deg", 75)
    assert run(page).startswith("done") and "field of view 75" in page.text_content("[data-points]")
    page.click("#stack", position={"x": 200, "y": 150})
    page.wait_for_selector("#pixel svg")
    assert "90% interval" in page.text_content("#pixel")
    canvas = page.locator("[data-points] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.up()
    page.wait_for_timeout(200)
    before = canvas.screenshot()
    page.mouse.down()
    page.mouse.move(x + 150, y + 20, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    assert canvas.screenshot() != before
    assert download(page, "cloud.ply").startswith(b"ply") and download(page, "cloud.glb").startswith(b"glTF")
    assert np.load(BytesIO(download(page, "map.npy"))).shape == (120, 160)


def check_sources(page):
    tab(page, "normals")
    assert upload(page, "mine.png", png()) == "150 x 110 pixels" and run(page).startswith("done")
    assert np.load(BytesIO(download(page, "map.npy"))).shape == (110, 150, 3)
    for name, content in (("bad.png", png()[:60]), ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("e.jpg", b"")):
        assert upload(page, name, content).endswith(".") and "error" in page.get_attribute("#status", "class")
        assert on_screen(page, "#status")
    assert upload(page, "mine.tiff", png(kind="TIFF")) == "150 x 110 pixels"
    # A browser shows no TIFF itself.
    assert page.eval_on_selector("#chosen", "async e => { await e.decode(); return e.naturalWidth; }") == 150
    page.click("#webcam")
    page.wait_for_selector("#video", state="visible")
    page.click("#webcam")
    page.wait_for_selector("#chosen", state="visible")
    page.wait_for_timeout(200)
    assert "pixels" in settle(page)


def check_completion(page):
    tab(page, "completion")
    page.click("#samples button:nth-child(2)")
    box = page.locator("#chosen").bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"], steps=3)
    page.mouse.up()
    turn(page, "steps", 3)
    turn(page, "samples", 2)
    assert run(page).startswith("done")
    np.testing.assert_allclose(settings(page)["cover"], (0.1, 0.1, 0.5, 0.6), atol=0.02)


def check_cancel(page, service):
    tab(page, "segmentation")
    turn(page, "steps", 50)
    turn(page, "samples", 4)
    page.click("#run")
    page.wait_for_timeout(500)
    page.click("#cancel")
    assert settle(page) == "cancelled"
    turn(page, "steps", 1)
    turn(page, "samples", 1)
    assert run(page).startswith("done")


@pytest.mark.slow
def test_the_page_in_chromium(service, url):
    with browser_page(url) as page:
        check_maps(page)
        check_depth(page)
        check_sources(page)
        check_completion(page)
        check_cancel(page, service)
        tab(page, "places")
        page.click("#places button:nth-child(2)")
        for name, value in (("steps", 2), ("samples", 1), ("threshold", 0.4)):
            turn(page, name, value)
        assert run(page).startswith("done")
        page.click("#stack", position={"x": 200, "y": 150})
        page.wait_for_selector("#pixel .share")
        assert "truth" in page.text_content("#pixel") and page.text_content("#first-layer") == "truth"
        assert {"probabilities", "truth"} <= set(np.load(BytesIO(download(page, "map.npz"))).files)
        tab(page, "drawing")
        for name, value in (("steps", 4), ("consistency_scale", 30), ("prior_scale", 0), ("seed", 3)):
            turn(page, name, value)
        assert run(page).startswith("done") and page.locator("[data-points]").count() == 2
        pair = [np.asarray(Image.open(BytesIO(download(page, f"{kind}.png")))) for kind in ("unguided", "guided")]
        assert pair[0].shape == (64, 64, 3) and (pair[0] != pair[1]).any()
        assert download(page, "guided-cloud.ply").startswith(b"ply")
        assert page.errors == [] and page.foreign == []
        # Whoever closes the page while a run waits or runs cancels it.
        tab(page, "segmentation")
        turn(page, "steps", 50)
        turn(page, "samples", 4)
        page.click("#run")
        page.wait_for_timeout(400)
    began = time.monotonic()
    after = service.queue.submit(lambda job: "free")
    while not after.over and time.monotonic() - began < WAIT_S:
        after.wait(0.1)
    assert after.result == "free"


def check_cloud(page):
    """All of the cloud is on the stage in the first view: nothing is painted at its border, much inside."""
    tab(page, "depth")
    for sample in (1, 7):
        page.click(f"#samples button:nth-child({sample})")
        assert run(page).startswith("done")
        page.locator("[data-points] canvas").scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        painted = np.array(
            page.eval_on_selector(
                "[data-points] canvas",
                """canvas => { const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, rows = [];
                for (let y = 0; y < canvas.height; y++) { rows.push([]); for (let x = 0; x < canvas.width; x++) {
                const at = 4 * (y * canvas.width + x); rows[y].push(data[at] + data[at + 1] + data[at + 2]); } } return rows; }""",
            )
        )
        painted = painted != painted[0, 0]
        border = np.concatenate([painted[:2].ravel(), painted[-2:].ravel(), painted[:, :2].ravel(), painted[:, -2:].ravel()])
        assert not border.any() and painted.mean() > 0.1
        filled = painted.any(0).mean(), painted.any(1).mean()
        assert max(filled) > 0.75, "the cloud is smaller than it could be"


def check_scales(page):
    tab(page, "normals")
    assert "Choose an image" in page.text_content("#empty")
    assert run(page).startswith("done")
    page.wait_for_selector("#bar-map .ball img")
    assert "faces up" in page.text_content("#legend")
    # The slider's middle is the map, and the name of the map stands there.
    assert abs(middle(box_of(page, "#middle-layer")) - middle(box_of(page, "#mix"))) < 2
    page.click("#stack", position={"x": 60, "y": 60})
    page.wait_for_selector("#pixel svg rect")
    picture, cone = box_of(page, "#pixel svg"), box_of(page, "#pixel line.mark >> nth=1")
    degrees = float(page.text_content("#pixel .ends span:last-child").rstrip("°"))
    said = float(page.locator("#pixel dd").nth(2).text_content().removeprefix("within ").rstrip("°"))
    assert (middle(cone) - picture["x"]) / picture["width"] == pytest.approx(said / degrees, abs=0.01)
    tab(page, "places")
    assert "Choose a place" in page.text_content("#empty")
    turn(page, "steps", 1)
    assert run(page).startswith("done") and page.is_visible("#bar-uncertainty .bar")
    car, stack = box_of(page, "#car"), box_of(page, "#stack")
    assert abs(middle(car) - middle(stack)) < 2 and page.text_content("#last-layer").startswith("uncertainty (")
    page.click("#stack", position={"x": 60, "y": 60})
    page.wait_for_selector("#pixel .share")
    assert page.text_content("#pixel h3").startswith("cell ")
    tab(page, "segmentation")
    turn(page, "steps", 50)
    turn(page, "samples", 32)
    assert run(page).endswith("at most 200 are made here") and on_screen(page, "#status") and not page.is_visible("#car")


def check_narrow(page):
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    cut = "all => all.filter(one => one.offsetParent && one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)"
    for name in ("segmentation", "depth", "completion", "places", "drawing"):
        page.evaluate("scrollTo(0, 0)")
        tab(page, name)
        if name != "depth":
            turn(page, "steps", 3)
        assert run(page).startswith("done") and page.evaluate(wide) <= 0
        page.wait_for_timeout(1200)  # it scrolls smoothly
        assert box_of(page, "#results")["y"] < page.viewport_size["height"] / 3, "the result is out of sight"
        for width in (390, 800, 1000):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate(wide) <= 0
            assert page.eval_on_selector_all("#cards figcaption b, #cards figcaption span", cut) == []
            assert page.eval_on_selector_all("#cards .scroll", cut) == []
        page.set_viewport_size({"width": 390, "height": 844})
        for bar in page.locator(".ticks").all():
            boxes = [span.bounding_box() for span in bar.locator("span").all() if span.is_visible()]
            assert all(left["x"] + left["width"] <= right["x"] for left, right in itertools.pairwise(boxes))
    tab(page, "completion")
    # A finger that draws the cover must not scroll the page.
    assert page.eval_on_selector("#drop", "e => getComputedStyle(e).touchAction") == "none"
    tab(page, "depth")
    assert page.eval_on_selector("#drop", "e => getComputedStyle(e).touchAction") == "auto"


@pytest.mark.slow
def test_nothing_on_the_page_is_cut_off_or_unexplained(url):
    with browser_page(url, reduced_motion="reduce") as page:
        check_cloud(page)
        check_scales(page)
        assert page.errors == []
    with browser_page(url, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        check_narrow(page)
        assert page.errors == []
    with browser_page(url, viewport={"width": 800, "height": 860}) as page:
        tab(page, "depth")
        picture, dials = box_of(page, "#source"), box_of(page, "#dials")
        assert picture["x"] + picture["width"] < dials["x"]  # beside each other, so that both fit on the screen
