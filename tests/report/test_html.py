import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from noise2map.report.canvas import ColorBar
from noise2map.report.html import Cloud, GalleryItem, Page
from noise2map.report.panels import Cell
from noise2map.report.plots import Series, quality_plot

VOID = {"meta", "img", "input", "source", "br", "link"}


class Checker(HTMLParser):
    """Balances tags, collects what would be fetched and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text, self.ids, self.links = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [attributes[name] for name in ("src", "srcset") if attributes.get(name)]
        self.sources += json.loads(attributes.get("data-frames", "[]"))
        self.ids.append(attributes.get("id"))
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (6, 8, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(scope="module")
def page(pictures):
    a, b, c = pictures
    page = Page("Maps <script>alert(1)</script>", "A & B")
    page.section("First", "Call `predict` & <look>.")
    page.cells([[Cell("image", a), Cell("depth", b, ColorBar(1, 20, "plasma_r", log=True, unit="m"))], [None, Cell("x", c)]])
    page.gallery([GalleryItem(a, "one", [[Cell("image", a)]], [((1, 2, 3), "wall")]), GalleryItem(b, "two", [[Cell("i", b)]])])
    page.player([[Cell("image", a), Cell("map", one, note=f"step {i}")] for i, one in enumerate((b, c))], "denoising")
    page.cloud(Cloud(np.array([[0.0, 0, 1], [1, 2, 3], [np.nan, 0, 0]]), {"image": np.eye(3, dtype=np.uint8) * 255}))
    page.table([{"steps": 1, "mIoU": 60.0}, {"steps": 3, "mIoU": 62.0}], best={"mIoU": "high"})
    plot = quality_plot({"a": Series([1, 2], [3, 4])}, "x", "y")
    page.figures([(plot, plot)])
    page.code("noise2map predict <image>")
    page.footer("made here")
    return page.render()


@pytest.fixture(scope="module")
def parsed(page):
    checker = Checker()
    checker.feed(page)
    return checker


def test_tags_are_balanced_and_nothing_is_fetched(page, parsed):
    assert parsed.open == []
    assert parsed.sources and all(source.startswith("data:") for source in parsed.sources)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page).replace("// ", ""))
    assert "@import" not in page and "url(" not in page


def test_text_is_escaped(page, parsed):
    assert "<script>alert(1)" not in page
    assert "alert(1)" in "".join(parsed.text)
    assert "<code>predict</code> &amp; &lt;look&gt;." in page


def test_sections_are_linked(parsed):
    assert parsed.links == ["#s1"] and "s1" in parsed.ids


def test_pictures_are_lossless(parsed, pictures):
    found = []
    for source in parsed.sources:
        kind, data = source.split(";base64,")
        if kind == "data:image/webp":
            found.append(np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert("RGB")))
    for picture in pictures:
        assert any(picture.shape == one.shape and (picture == one).all() for one in found)


def test_the_player_stores_what_does_not_change_once(page):
    card = page[page.index("data-player") : page.index("data-points")]
    assert card.count("data-frames") == 1 and card.count('max="1"') == 1
    assert "step 0" in card and "step 1" in card
    with pytest.raises(ValueError, match="same number"):
        Page("x").player([])


def test_the_cloud_holds_the_known_points(page):
    text = page[page.index("data-points") :]
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    points = np.frombuffer(base64.b64decode(data["points"]), "<i2").reshape(-1, 3) * data["unit"]
    assert points.shape == (2, 3)
    expected = np.array([[-0.5, -1, -1], [0.5, 1, 1]])  # about their middle
    radius = np.linalg.norm(expected, axis=1)[0]
    assert points * radius == pytest.approx(expected, abs=2e-3)
    assert data["eye"] * radius == pytest.approx(2.0)
    colors = np.frombuffer(base64.b64decode(data["colors"][0]["rgb"]), np.uint8).reshape(-1, 3)
    assert colors.tolist() == [[255, 0, 0], [0, 255, 0]]
    with pytest.raises(ValueError, match="finite"):
        Page("x").cloud(Cloud(np.full((1, 3), np.nan), {}))


def test_points_of_an_image_say_how_much_they_grow():
    points = np.moveaxis(np.mgrid[0:3, 0:2, 1:2].astype(float)[..., 0], 0, -1)[..., [1, 0, 2]]
    page = Page("x")
    page.cloud(Cloud.of_image(points, {"image": np.zeros((3, 2, 3), np.uint8)}, 3.0))
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page.render())[1])
    # Neighbours are a metre apart, a pixel is a third of one wide there.
    assert np.frombuffer(base64.b64decode(data["growth"]), np.uint8).tolist() == [150] * 6
    page.cloud(Cloud(points.reshape(-1, 3), {"image": np.zeros((6, 3), np.uint8)}))
    assert '"growth": null' in page.render()


def test_clouds_beside_each_other_are_cards_of_their_own():
    page, cloud = Page("x"), Cloud(np.eye(3), {"image": np.eye(3, dtype=np.uint8)})
    page.text("before")
    page.clouds([(cloud, "one room"), (cloud, "other room")])
    text = page.render()
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and len(re.findall('class="card" data-points', text)) == 2
    assert text.index("<p>before") < text.index("repeat(2,1fr)") < text.index("one room") < text.index("other room")


def test_the_best_value_is_marked(page):
    assert '<td class="best">62.0</td>' in page and '<td class="best">60.0</td>' not in page


def test_color_bars_have_ticks_with_units(page):
    bar = page[page.index('class="bar"') : page.index('class="bar"') + 1500]
    assert "linear-gradient" in bar and "2 m" in bar and "10 m" in bar


def test_the_page_is_written_whole(tmp_path):
    page = Page("x")
    page.text("y")
    page.write(tmp_path / "out" / "index.html")
    assert (tmp_path / "out" / "index.html").read_text().startswith("<!doctype html>")
    assert len(list((tmp_path / "out").iterdir())) == 1
