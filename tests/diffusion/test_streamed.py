"""Streamed fields of noise hold what drawing them whole gives."""

import pytest
import torch

from noise2map.diffusion import draw_noise, image_generator
from noise2map.diffusion.streamed import StreamedNoise


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 3, 9, 7), (1, 5, 37, 101), (3, 1, 200, 123), (1, 1, 3, 4)])
def test_rows_are_those_of_the_whole_draw(shape):
    generator = image_generator(3, "a")
    streamed = StreamedNoise(image_generator(3, "a"))
    height = shape[2]
    wholes = [draw_noise(shape, [generator])[0] for _ in range(3)]
    for top, bottom in [(0, height), (0, 1), (height - 1, height), (height // 3, height // 3 + 2), (1, height)]:
        for index, whole in enumerate(wholes):  # the later draws of a run, too
            assert torch.equal(streamed.rows(index, shape, top, bottom), whole[:, :, top:bottom])


def test_fields_of_different_shapes_follow_each_other():
    shapes, generator, streamed = (
        [(1, 2, 11, 13), (2, 1, 5, 50), (1, 1, 300, 301)],
        image_generator(0, "b"),
        StreamedNoise(image_generator(0, "b")),
    )
    for index, shape in enumerate(shapes):
        assert torch.equal(streamed.rows(index, shape, 1, 4), draw_noise(shape, [generator])[0, :, :, 1:4])


def test_the_generator_is_left_alone():
    generator = image_generator(0, "c")
    before = generator.get_state()
    StreamedNoise(generator).rows(0, (1, 1, 20, 20), 0, 5)
    assert torch.equal(generator.get_state(), before)


def test_what_cannot_be_asked_for():
    streamed = StreamedNoise(image_generator(0, "d"))
    with pytest.raises(ValueError, match="field 1 is asked for after 0"):
        streamed.rows(1, (1, 1, 8, 8), 0, 1)
    with pytest.raises(ValueError, match="rows 4 to 9 of a field of 8"):
        streamed.rows(0, (1, 1, 8, 8), 4, 9)
    streamed.rows(0, (1, 1, 8, 8), 0, 1)
    with pytest.raises(ValueError, match="has shape"):
        streamed.rows(0, (1, 1, 8, 9), 0, 1)
