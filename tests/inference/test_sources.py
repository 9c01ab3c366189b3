"""Where images come from: folders, files, addresses, arrays; what is left out and why."""

import http.client
import http.server
import os
import threading
from itertools import islice

import numpy as np
import pytest
from PIL import Image, features

from noise2map.data import images as image_files
from noise2map.data.images import open_image
from noise2map.inference.reading import as_image, as_images, download, read_image, read_images
from noise2map.inference.sources import describe_skipped, find_images, longer_ids
from noise2map.runs.output_folder import claim


@pytest.fixture
def folder(tmp_path):
    """Images of several kinds, and what is none."""
    source = tmp_path / "images"
    (source / "sub").mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8))
    for name in ("a.png", "b.JPG", "sub/c.png", "d.avif"):
        image.save(source / name)
    image.save(source / "e.jfif", "JPEG")
    (source / "clip.mp4").write_bytes(b"")
    (source / "doc.pdf").write_bytes(b"")
    (source / "phone.heic").write_bytes(b"")
    (source / ".hidden").mkdir()
    image.save(source / ".hidden" / "x.png")
    (source / "gone.png").symlink_to(source / "nowhere.png")
    (source / "linked.png").symlink_to(source / "a.png")
    return source


@pytest.fixture
def no_heif(monkeypatch):
    monkeypatch.setattr(image_files, "image_suffixes", lambda: image_files.IMAGE_SUFFIXES)
    monkeypatch.setattr("noise2map.inference.sources.image_suffixes", lambda: image_files.IMAGE_SUFFIXES)


def test_images_are_found_and_what_is_left_out_is_named(folder, no_heif):
    found = find_images(folder)
    assert list(found.images) == ["a.png", "b.JPG", "d.avif", "e.jfif", "linked.png", "sub/c.png"]
    assert found.skipped == {
        "clip.mp4": "not an image",
        "doc.pdf": "not an image",
        "gone.png": "a link to nothing",
        "phone.heic": "needs pip install pillow-heif",
    }
    assert describe_skipped(found.skipped, 1) == "clip.mp4 (not an image) and 3 more"


def test_jfif_and_avif_are_read(folder):
    assert features.check("avif")
    for name in ("d.avif", "e.jfif"):
        assert open_image(folder / name).size == (9, 8)


def test_outputs_and_the_folder_to_write_to_are_passed_over(folder):
    for name, text in (("old", '{"noise2map": "0.1.0"}'), ("theirs", "{}"), ("now", "{}")):
        (folder / name / "labels").mkdir(parents=True)
        (folder / name / "settings.json").write_text(text)
        Image.new("RGB", (4, 4)).save(folder / name / "labels" / "a.png")
    found = find_images(folder, leave_out=folder / "now")
    assert [one for one in found.images if "labels" in one] == ["theirs/labels/a.png"]
    assert found.skipped["old/"] == "written by noise2map" and not any("now" in name for name in found.skipped)


def test_several_sources_and_equal_names(folder, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    found = find_images([folder / "a.png", str(folder / "sub" / "c.png"), folder / "a.png"])
    assert found.images == {"a.png": folder / "a.png", "c.png": folder / "sub" / "c.png"}
    found = find_images([folder / "a.png", tmp_path / "a.png"])
    assert found.images == {"images/a.png": folder / "a.png", f"{tmp_path.name}/a.png": tmp_path / "a.png"}
    found = find_images(["http://one.example/a.png?size=3", "https://two.example/x/a.png", "https://two.example"])
    assert list(found.images) == ["one.example/a.png", "two.example", "two.example/x/a.png"] or list(found.images) == [
        "one.example/a.png",
        "two.example",
        "x/a.png",
    ]


def test_sources_that_cannot_be(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no image or folder"):
        find_images(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        find_images(tmp_path / "empty")
    (tmp_path / "empty" / "doc.pdf").touch()
    with pytest.raises(ValueError, match=r"holds no image .*; skipped: doc\.pdf \(not an image\)"):
        find_images(tmp_path / "empty")
    with pytest.raises(ValueError, match="is also the one to write to; choose another --out"):
        find_images(folder, leave_out=folder)


def test_names_are_printable(tmp_path):
    for name in (b"caf\xe9.png", b"new\nline.png", "schön 😀.png".encode()):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            Image.new("RGB", (4, 4)).save(file, "PNG")
    found = find_images(tmp_path)
    assert sorted(found.images) == ["caf\\xe9.png", "new\\nline.png", "schön 😀.png"]
    assert all(read_image(path).size == (4, 4) for path in found.images.values())


# ---- addresses -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(folder):
    """A server on this machine of the folder, and of ``/endless``."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/endless":
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"0" * 65536)
            except OSError:
                return None

        def log_message(self, *_):
            pass

    bound = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(folder)))
    threading.Thread(target=bound.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{bound.server_port}"
    bound.shutdown()
    bound.server_close()


def test_addresses_are_read(server, folder):
    assert read_image(f"{server}/a.png").tobytes() == open_image(folder / "a.png").tobytes()
    assert as_image(f"{server}/sub/c.png").size == (9, 8)


def test_downloads_are_bounded_and_errors_name_the_address(server):
    with pytest.raises(OSError, match=r"cannot fetch image http://.*/endless: it is larger than 1 MiB"):
        download(f"{server}/endless", max_bytes=2**20)
    with pytest.raises(OSError, match=r"/none\.png: .*404|/none\.png: File not found|/none\.png: Not Found"):
        read_image(f"{server}/none.png")
    with pytest.raises(OSError, match=r"doc\.pdf: not an image file of a known format"):
        read_image(f"{server}/doc.pdf")
    with pytest.raises(OSError, match=r"cannot fetch image http://127\.0\.0\.1:9/"):
        read_image("http://127.0.0.1:9/a.png")


# ---- what Predictor takes --------------------------------------------------------------------------------------------------


def test_anything_that_is_an_image_is_taken(folder):
    image = open_image(folder / "a.png")
    array = np.asarray(image)
    for thing in (image, str(folder / "a.png"), folder / "a.png", array, array.transpose(2, 0, 1)):
        assert len(as_images(thing)) == 1
        assert np.array_equal(np.asarray(as_image(as_images(thing)[0])), array)
    assert len(as_images([image, array])) == len(as_images(np.stack([array, array]))) == 2


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (None, "image is a NoneType; expected a Pillow image, an array .*, a path or an http"),
        (3, "image is a int"),
        (b"x", "image is a bytes"),
        (np.zeros((4, 4, 3)), "type float64; expected uint8"),
        (np.zeros((5, 5, 7), np.uint8), "shape"),
    ],
)
def test_what_is_no_image_gets_a_sentence(thing, message):
    with pytest.raises(ValueError, match=message):
        as_image(as_images(thing)[0])


def test_a_folder_is_no_image(folder):
    with pytest.raises(ValueError, match=r"is the folder .*expected a file"):
        as_image(folder)


# ---- greys of more than 8 bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 255.0], [0, 100, 255]), ([0.0, 257.0, 65535.0], [0, 1, 255])],
)
def test_float_images_are_scaled_by_their_range(tmp_path, values, expected):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "f.tiff")
    assert np.asarray(open_image(tmp_path / "f.tiff"))[0, :, 0].tolist() == expected


def test_float_images_beyond_any_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 1e6]], np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(OSError, match=r"f\.tiff: its values reach from 0 to 1e\+06, expected 16 bits, 0..255 or 0..1"):
        open_image(tmp_path / "f.tiff")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    image_files.image_suffixes()
    Image.open(tmp_path / "a.png").save(tmp_path / "a.heic")
    assert list(find_images(tmp_path).images) == ["a.heic", "a.png"]
    assert open_image(tmp_path / "a.heic").size == (64, 48)


def test_ids_of_files_above_never_leave_the_folder_of_the_maps(folder, monkeypatch):
    """`a.png` and `../a.png`: the second was called `../a.png`, and all its files were written over each other, outside."""
    Image.new("RGB", (4, 4)).save(folder.parent / "a.png")
    monkeypatch.chdir(folder)
    found = find_images(["a.png", "../a.png"])
    assert sorted(found.images) == sorted([f"{folder.name}/a.png", f"{folder.parent.name}/a.png"])
    for address in ("http://h/x/../../a.png", "http://h/./%2e%2e/a.png"):
        assert not any(".." in name.split("/") for name in islice(longer_ids("a.png", address), 5))


@pytest.mark.parametrize(
    "error", [http.client.InvalidURL("spaces"), http.client.BadStatusLine("x"), http.client.IncompleteRead(b"")]
)
def test_an_address_that_makes_no_sense_fails_alone(folder, monkeypatch, error):
    def broken(*args, **keywords):
        raise error

    monkeypatch.setattr("noise2map.inference.reading.urlopen", broken)
    failed = {}
    read = dict(read_images([("bad", "http://127.0.0.1:9/my photo.png"), ("good", folder / "a.png")], failed.__setitem__))
    assert list(read) == ["good"] and failed["bad"].startswith("cannot fetch image http://127.0.0.1:9/my photo.png")


def test_linked_folders_are_named_and_so_are_outputs_under_a_pattern(folder, tmp_path, no_heif):
    (tmp_path / "real").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "real" / "x.png")
    (folder / "more").symlink_to(tmp_path / "real")
    found = find_images(folder)
    assert "more/x.png" not in found.images and found.skipped["more/"] == "a link to a folder: name it"
    assert list(find_images(folder / "more").images) == ["x.png"]
    with claim(tmp_path / "rooms", {"command": "data samples"}):
        (tmp_path / "rooms" / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "rooms" / "images" / "y.png")
    found = find_images(str(tmp_path / "r*" / "**" / "*.png"))
    assert list(found.images) == ["real/x.png"] and found.skipped == {"rooms/": "written by noise2map"}
