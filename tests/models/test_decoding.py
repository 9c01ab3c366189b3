"""Decoding options: what is refused, what the checkpoint fills in, and that they decode what the model's own keywords do."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from tiny_models import images, tiny_config, tiny_depth_model, tiny_segmenter

from noise2map.diffusion import image_generator
from noise2map.models.decoding import MAX_SAMPLES, MAX_STEPS, DecodingOptions, Protocol


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; expected an integer from 1 to 1000 or 'auto'"),
        ({"num_inference_steps": 1_000_000}, "num_inference_steps is 1000000; expected an integer from 1 to 1000 or 'auto'"),
        ({"num_inference_steps": "many"}, "num_inference_steps is 'many'"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"num_inference_steps": 2.0}, "num_inference_steps is 2.0"),
        ({"ensemble_size": 1001}, "ensemble_size is 1001; expected an integer from 1 to 1000"),
        ({"ensemble_size": "auto"}, "ensemble_size is 'auto'"),
        ({"average": "median"}, "average is 'median'; expected one of 'last', 'steps'"),
        ({"sampler": "euler"}, "sampler is 'euler'; expected one of 'ddim', 'ddpm'"),
        ({"seed": 0.5}, "seed is 0.5; expected an integer"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_impossible_options_are_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        DecodingOptions(**options)


def test_the_bounds_themselves_are_allowed():
    options = DecodingOptions(num_inference_steps=MAX_STEPS, ensemble_size=MAX_SAMPLES)
    assert (options.num_inference_steps, options.ensemble_size) == (1000, 1000)


def test_they_are_keywords_and_cannot_be_changed():
    with pytest.raises(TypeError):
        DecodingOptions(3)
    with pytest.raises(FrozenInstanceError):
        DecodingOptions().seed = 1


def test_the_model_refuses_what_the_options_refuse_before_it_encodes():
    model = tiny_segmenter()
    with pytest.raises(ValueError, match="num_inference_steps is 1000000; expected an integer from 1 to 1000"):
        model(pixel_values=images(), num_inference_steps=1_000_000)


def test_the_checkpoint_fills_in_what_was_not_chosen():
    config = tiny_config(num_inference_steps=5, ensemble_size=2, average="steps", sampler="ddpm")
    assert DecodingOptions(seed=7).resolved(config) == replace(Protocol(5, 2, "steps", "ddpm"), seed=7)
    assert DecodingOptions(num_inference_steps="auto", average="last").resolved(config) == Protocol("auto", 2, "last", "ddpm")


def test_a_model_without_diffusion_has_one_decoding():
    config = tiny_config(diffusion=False, num_inference_steps=3, average="steps")
    assert DecodingOptions().resolved(config) == Protocol(1, 1, "last", "ddim")
    for options in ({"num_inference_steps": 2}, {"ensemble_size": 2}):
        with pytest.raises(ValueError, match="trained without diffusion"):
            DecodingOptions(**options).resolved(config)


@pytest.mark.parametrize("kind", [tiny_segmenter, tiny_depth_model])
def test_decoding_is_that_of_the_model_seeded_by_image(kind):
    model = kind()
    with torch.no_grad():
        features = model.encode_image(images(3))
        options = DecodingOptions(num_inference_steps=2, ensemble_size=2, average="steps", sampler="ddpm", seed=4)
        found = options.decode(model, features, ["a", "b", "c"])
        alone = options.decode(model, features[1:2], ["b"], output_steps=True)
        expected = model.decode_map(
            features,
            num_inference_steps=2,
            ensemble_size=2,
            average="steps",
            sampler="ddpm",
            generator=[image_generator(4, name) for name in "abc"],
        )
    assert torch.equal(found.prediction, expected.prediction)
    assert torch.allclose(found.prediction[1:2], alone.prediction, atol=1e-4)
    assert len(alone.steps) == 2
    assert not torch.equal(found.prediction, replace(options, seed=5).decode(model, features, ["a", "b", "c"]).prediction)


def test_a_denoiser_is_what_the_sampler_calls():
    model = tiny_depth_model()
    with torch.no_grad():
        features = model.encode_image(images(2))
        steps = DecodingOptions(num_inference_steps=3).decode(model, features, ["a", "b"], output_steps=True).steps
        denoise = model.denoiser(features, [(step.t, step.t_next) for step in steps])
        for step in [*steps, *steps]:  # after the last time comes the first again
            x0, prediction = denoise(step.x_t, torch.full((2,), step.t))
            assert torch.equal(x0, step.x0) and torch.equal(prediction, step.prediction)
            assert step.readout is step.prediction


def test_a_name_tells_everything_but_the_seed():
    assert Protocol(1).name == "1 step, last, ddim"
    assert Protocol(3, 4, "steps", "ddpm").name == "3 steps x 4 samples, steps, ddpm"
    assert Protocol("auto").name == replace(Protocol("auto"), seed=3).name == "auto steps, last, ddim"
    assert DecodingOptions().name == "default steps x default samples, default average, default sampler"
