"""The bird's-eye-view model: dials, batches, training, saving, sensors, refusals."""

import math

import pytest
import torch
from tiny_bev import generators, inputs, labels, select, tiny_bev, tiny_config
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSemanticSegmentation

import noise2map
from noise2map.models import Noise2MapForBevSegmentation
from noise2map.models.aggregation import ProbabilityAggregator, Sigmoid
from noise2map.models.bev.losses import multilabel_focal_loss
from noise2map.models.decoding import DecodingOptions

SENSORS = [("camera",), ("lidar",), ("camera", "lidar")]


def test_public_name():
    assert noise2map.Noise2MapForBevSegmentation is Noise2MapForBevSegmentation


@pytest.mark.parametrize("sensors", SENSORS)
def test_output_shapes_and_ranges(sensors):
    model = tiny_bev(sensors)
    out = model(**inputs(sensors, 2), num_inference_steps=3, ensemble_size=2, output_uncertainty=True, output_steps=True)
    assert out.logits.shape == out.probabilities.shape == (2, 6, 12, 16)
    assert out.uncertainty.shape == (2, 6, 12, 16) and set(out.uncertainties) == {
        "step_flip", "entropy", "least_confidence", "sample_variance", "mutual_information",
    }  # fmt: skip
    for value in [out.probabilities, *out.uncertainties.values()]:
        assert value.min() >= 0 and value.max() <= 1
    assert out.num_steps.tolist() == [3, 3] and [step.x_t.shape for step in out.steps] == [(4, 16, 8, 8)] * 3


@pytest.mark.parametrize("average", ["last", "steps"])
def test_probabilities_are_means_over_samples_and_steps(average):
    """Worked out from what the decoder said at every step."""
    model = tiny_bev()
    out = model(
        **inputs(batch_size=2), num_inference_steps=3, ensemble_size=2, average=average, generator=generators(2), output_steps=True
    )
    said = torch.stack([step.readout.sigmoid().unflatten(0, (2, 2)) for step in out.steps])  # (steps, B, R, K, X, Y)
    expected = said.mean((0, 2)) if average == "steps" else said[-1].mean(1)
    torch.testing.assert_close(out.probabilities, expected, atol=1e-5, rtol=1e-5)
    read = out.logits.exp() if average == "steps" else out.logits.sigmoid()
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-5)
    flips = ((said[1:] > 0.5) != (said[:-1] > 0.5)).float().mean((0, 2))
    torch.testing.assert_close(out.uncertainties["step_flip"], flips)


@pytest.mark.parametrize("sensors", SENSORS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_map_does_not_depend_on_its_batch(sensors, sampler):
    model = tiny_bev(sensors)
    batch = inputs(sensors, 3)
    dials = {"num_inference_steps": 2, "ensemble_size": 2, "sampler": sampler}
    together = model(**batch, generator=generators(3), **dials)
    for i in (2, 0, 1):
        alone = model(**select(batch, i), generator=generators(1, i), **dials)
        torch.testing.assert_close(together.probabilities[i], alone.probabilities[0], atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(together.uncertainty[i], alone.uncertainty[0], atol=2e-4, rtol=2e-4)


def test_encode_once_decode_often():
    model = tiny_bev()
    batch = inputs()
    features = model.encode_image(batch["pixel_values"], noise2map.models.bev.CameraRig.create(
        batch["intrinsics"], batch["camera_to_lidar"]
    ))  # fmt: skip
    assert features.shape == (1, 8, 8, 8)
    whole = model(**batch, num_inference_steps=2, generator=generators(1))
    assert torch.equal(model.decode_map(features, 2, generator=generators(1)).logits, whole.logits)
    with pytest.raises(ValueError, match=r"features have shape \(1, 8, 4, 8\); expected .*8, 8, 8"):
        model.decode_map(features[:, :, :4])


def test_known_features_stand_for_the_sensors():
    model, batch = tiny_bev(("camera", "lidar")), inputs(("camera", "lidar"), batch_size=2)
    with torch.no_grad():
        features = model.encode_sensors(**batch)
        first = model(**batch, generator=generators(2)).logits
        assert torch.equal(model(features=features, generator=generators(2)).logits, first)
        truth, noise = labels(2), torch.randn(2, *features.shape[1:], generator=torch.Generator().manual_seed(0))
        noise, times = noise[:, : model.codec.channels], torch.tensor([0.3, 0.8])
        losses = [model(**one, labels=truth, noise=noise, timesteps=times).loss for one in (batch, {"features": features})]
        assert torch.equal(*losses)
    with pytest.raises(ValueError, match=r"labels have shape .* expected \(2, 6, 12, 16\)"):
        model(features=features, labels=labels(3))


def test_a_call_takes_every_dial_and_no_unknown_keyword():
    model = tiny_bev(uncertainty="entropy").eval()
    features = torch.randn(2, model.config.feature_channels, *model.config.feature_size, generator=torch.Generator().manual_seed(0))
    options = DecodingOptions(num_inference_steps=3, ensemble_size=2, refine="uncertain", refine_share=0.1)
    with torch.no_grad():
        called = model(features=features, generator=generators(2), **options.dials)
        decoded = model.decode_map(features, generator=generators(2), **options.dials)
        every = model(features=features, generator=generators(2), **{**options.dials, "refine": "all", "refine_share": None})
    assert torch.equal(called.logits, decoded.logits) and not torch.equal(called.logits, every.logits)
    with pytest.raises(ValueError, match="has no argument 'num_inference_stepz'"):
        model(features=features, num_inference_stepz=7)


def test_the_mean_is_fed_back_of_embedded_layers_too():
    models = [tiny_bev(feedback=feedback).eval() for feedback in ("argmax", "mean")]
    models[1].load_state_dict(models[0].state_dict())
    features = torch.randn(1, models[0].config.feature_channels, *models[0].config.feature_size)
    with torch.no_grad():
        maps = [one(features=features, generator=generators(1), num_inference_steps=3).logits for one in models]
    assert not torch.equal(*maps)


def test_the_l2_objective_trains_in_half_precision():
    model = tiny_bev(objective="l2").bfloat16()
    features = torch.randn(2, model.config.feature_channels, *model.config.feature_size).bfloat16()
    assert torch.isfinite(model(features=features, labels=labels(2)).loss)


def test_auto_stops_each_sample_by_itself():
    model = tiny_bev(auto_threshold=0.999, auto_max_steps=4)
    out = model(**inputs(batch_size=2), num_inference_steps="auto", generator=generators(2))
    assert out.num_steps.tolist() == [2, 2]


@pytest.mark.parametrize("sensors", SENSORS)
def test_every_parameter_gets_a_gradient(sensors):
    model = tiny_bev(sensors).train()
    loss = model(**inputs(sensors, 2), labels=labels(2), generator=generators(2)).loss
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not silent and math.isfinite(loss.item())


@pytest.mark.slow
def test_training_learns_one_scene():
    model = tiny_bev(("camera", "lidar")).train()
    batch, truth = inputs(("camera", "lidar"), 2), labels(2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(12):
        loss = model(**batch, labels=truth, generator=torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "fields", [{"diffusion": False}, {"objective": "l2"}, {"self_aligned": True}, {"time_conditioning": False}]
)
def test_variants_train_and_sample(fields):
    model = tiny_bev(**fields).train()
    model(**inputs(batch_size=2), labels=labels(2), generator=generators(2)).loss.backward()
    out = model.eval()(**inputs(), num_inference_steps=1)
    assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize("sensors", [("camera", "lidar")])
def test_mixed_and_half_precision(sensors):
    model = tiny_bev(sensors)
    batch = inputs(sensors, 2)
    exact = model(**batch, num_inference_steps=1, generator=generators(2)).probabilities
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**batch, num_inference_steps=1, generator=generators(2)).probabilities
        model.train()(**batch, labels=labels(2), generator=generators(2)).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    half = model.eval().bfloat16()(**batch, num_inference_steps=1, generator=generators(2)).probabilities
    for rough in (mixed, half):
        torch.testing.assert_close(rough.float(), exact, atol=0.15, rtol=0)


def test_training_noise_comes_from_the_generator():
    model = tiny_bev().train()
    first, again, other = (model(**inputs(), labels=labels(), generator=generators(1, s)).loss for s in (0, 0, 1))
    assert first == again != other


def test_focal_loss_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    truth = (torch.rand(2, 3, 4, 5, generator=generator) < 0.3).long()
    p = torch.where(truth == 1, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-((1 - p) ** 2) * p.log()).mean((0, 2, 3))
    torch.testing.assert_close(multilabel_focal_loss(logits, truth), expected)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth.double(), reduction="none").mean((0, 2, 3))
    torch.testing.assert_close(multilabel_focal_loss(logits, truth, gamma=0.0), entropy)
    unknown = truth.clone()
    unknown[:, 1, 2:] = 255
    expected[1] = (-((1 - p) ** 2) * p.log())[:, 1, :2].mean()
    torch.testing.assert_close(multilabel_focal_loss(logits, unknown), expected)
    unknown[:, 1] = 255
    assert multilabel_focal_loss(logits, unknown)[1] == 0


def test_unknown_cells_have_no_loss_and_are_absent_in_the_map():
    model = tiny_bev()
    truth = labels()
    hidden = truth.clone()
    hidden[:, 2] = 255
    absent = truth.clone()
    absent[:, 2] = 0
    assert torch.equal(model.encode_labels(hidden, (8, 8)), model.encode_labels(absent, (8, 8)))
    assert torch.isfinite(model(**inputs(), labels=hidden, generator=generators(1)).loss)


def test_maps_reach_the_diffusion_grid_by_nearest_neighbour():
    """Cell i of the encoded map is cell floor(i * 12 / 8) of the labels; index 0 of the table stands for every absent layer."""
    model = tiny_bev()
    truth = labels()
    encoded = model.encode_labels(truth, (8, 8))
    rows, columns = [i * 12 // 8 for i in range(8)], [j * 16 // 8 for j in range(8)]
    table = model.codec.embedding.weight
    for i, j in [(0, 0), (3, 5), (7, 2)]:
        cell = truth[0, :, rows[i], columns[j]]
        mean = torch.stack([table[k + 1] if present else table[0] for k, present in enumerate(cell)]).mean(0)
        torch.testing.assert_close(encoded[0, :, i, j], (mean.sigmoid() * 2 - 1) * 0.1)


def test_uncertainty_is_for_each_layer_and_cell():
    """Two members that disagree about one layer of one cell."""
    readout = ProbabilityAggregator(Sigmoid(), 1, 2, "last")
    logits = torch.full((2, 3, 2, 2), -50.0)
    logits[1, 1, 0, 1] = 50.0
    readout.update(logits, torch.ones(1, dtype=torch.bool))
    prediction, kinds = readout.result()
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, 1, 0, 1] = 1
    for kind in ("entropy", "sample_variance", "mutual_information"):
        torch.testing.assert_close(kinds[kind], expected, atol=1e-5, rtol=0)
    assert prediction.sigmoid()[0, 1, 0, 1] == pytest.approx(0.5)


@pytest.mark.parametrize("sensors", SENSORS)
def test_save_and_load(tmp_path, sensors):
    model = tiny_bev(sensors, temperature=1.3)
    model.save_pretrained(tmp_path)
    loaded = Noise2MapForBevSegmentation.from_pretrained(tmp_path).eval()
    batch = inputs(sensors)
    assert torch.equal(model(**batch, generator=generators(1)).logits, loaded(**batch, generator=generators(1)).logits)
    assert loaded.config.id2label[5] == "divider" and loaded.config.bev_decoder == model.config.bev_decoder
    assert isinstance(AutoConfig.from_pretrained(tmp_path), type(model.config))
    assert isinstance(AutoModelForSemanticSegmentation.from_pretrained(tmp_path), Noise2MapForBevSegmentation)


def test_runs_with_either_sensor_missing_if_trained_so():
    model = tiny_bev(("camera", "lidar"), sensor_dropout=0.5)
    both = inputs(("camera", "lidar"), 2)
    full = model(**both, num_inference_steps=1, generator=generators(2)).logits
    for sensors in (("camera",), ("lidar",)):
        part = {key: both[key] for key in inputs(sensors)}
        out = model(**part, num_inference_steps=1, generator=generators(2))
        assert torch.isfinite(out.logits).all() and not torch.equal(out.logits, full)
    model.train()
    torch.manual_seed(0)
    model(**both, labels=labels(2), generator=generators(2)).loss.backward()
    with pytest.raises(ValueError, match="pixel_values with camera matrices missing"):
        model()


def test_sensors_that_a_model_needs_or_does_not_know():
    both, camera, lidar = (tiny_bev(s) for s in (("camera", "lidar"), ("camera",), ("lidar",)))
    with pytest.raises(ValueError, match="points missing: this model needs camera and lidar"):
        both(**inputs())
    with pytest.raises(ValueError, match="pixel_values with camera matrices missing"):
        both(**inputs(("lidar",)))
    with pytest.raises(ValueError, match="this model has no lidar branch; expected camera"):
        camera(**inputs(("camera", "lidar")))
    with pytest.raises(ValueError, match="this model has no camera branch"):
        lidar(**inputs(("camera", "lidar")))


def test_a_rig_that_was_predicted_with_can_be_trained_on():
    model, batch = tiny_bev(), inputs()
    with torch.inference_mode():
        model.eval()(**{name: value.clone() for name, value in batch.items()})
    model.train()(**batch, labels=labels()).loss.backward()
    assert all(value.grad is not None for value in model.encoder.camera.parameters() if value.requires_grad)


def test_matrices_of_several_types_make_one_rig():
    model, batch = tiny_bev(), inputs()
    expected = model.encode_sensors(**batch)
    mixed = {**batch, "intrinsics": batch["intrinsics"].double()}
    torch.testing.assert_close(model.encode_sensors(**mixed), expected, rtol=1e-3, atol=1e-3)


def test_inputs_that_do_not_fit_the_rig():
    model = tiny_bev()
    batch = inputs()
    with pytest.raises(ValueError, match=r"pixel_values have shape \(1, 1, 3, 32, 64\); expected .*2, 3, 32, 64"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:, :1]})
    with pytest.raises(ValueError, match="camera matrices are missing"):
        model(pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match=r"those of 1 x 1 images; expected 1 x 2"):
        model(**{**batch, "intrinsics": batch["intrinsics"][:, :1], "camera_to_lidar": batch["camera_to_lidar"][:, :1]})
    with pytest.raises(ValueError, match="intrinsics is singular"):
        model(**{**batch, "intrinsics": batch["intrinsics"] * 0})
    fused, lidar = tiny_bev(("camera", "lidar")), inputs(("lidar",), 2)
    with pytest.raises(ValueError, match=r"those of \[1, 2\] samples"):
        fused(**batch, **lidar)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :5], r"labels have shape \(1, 5, 12, 16\); expected \(1, 6, 12, 16\)"),
        (lambda x: x.float(), "labels are torch.float32"),
        (lambda x: x + 2, "up to 3; expected integers 0, 1 or 255"),
    ],
)
def test_impossible_labels_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_bev()(**inputs(), labels=change(labels()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sensors": ["radar"]}, "sensors is"),
        ({"sensors": []}, "sensors is"),
        ({"map_encoding": "analog_bits"}, "map_encoding is 'analog_bits'"),
        ({"bev_decoder": "unet"}, "bev_decoder is 'unet'"),
        ({"sensor_dropout": 1.0}, "sensor_dropout is"),
        ({"x_bounds": [8.0, -8.0, 1.0]}, "x_bounds is"),
        ({"x_bounds": [-8.0, 8.0, 0.7]}, "whole number of steps"),
        ({"x_bounds": [-7.0, 7.0, 1.0], "map_x_bounds": [-6, 6, 1]}, "multiples of 4"),
        ({"map_x_bounds": [-9.0, 9.0, 1.0]}, "map_x_bounds .* reach beyond"),
        ({"image_size": [30, 64]}, "image_size is"),
        ({"sensors": ["camera", "lidar"], "voxel_size": [0.5, 0.5, 0.2]}, "voxel_size .*expected 8 times"),
        ({"voxel_size": [0.5, 0.5]}, "voxel_size is .*expected 3 numbers"),
        ({"bev_decodr": "second"}, "no field 'bev_decodr'; did you mean 'bev_decoder'"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_fresh_weights_follow_the_published_initialisation():
    model = tiny_bev(("camera", "lidar"), context_channels=32, fuser_channels=64)
    for conv in (model.encoder.camera.lift.depthnet, model.encoder.fuser[0], model.encoder.decoder.backbone["blocks"][0][0]):
        bound = 1 / math.sqrt(conv.weight[0].numel())  # torch's default
        assert 0.9 * bound < conv.weight.abs().max() <= bound
    lateral = model.encoder.camera.neck.lateral_convs[0].conv.weight  # kaiming normal by the width of the output
    assert lateral.std().item() == pytest.approx(math.sqrt(2 / lateral.shape[0]), rel=0.15)
    sparse = model.encoder.lidar.conv_input[0]
    assert 0.9 * sparse.bound < sparse.weight.abs().max() <= sparse.bound
    assert model.codec.embedding.weight.std().item() == pytest.approx(1, rel=0.25)
    attention = model.decoder.layers[0].attention
    assert not attention.offsets.weight.any() and not attention.weights.weight.any()
    first_point = attention.offsets.bias.view(2, 2, 2)[:, 0]  # heads look to opposite sides
    torch.testing.assert_close(first_point, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), atol=1e-6, rtol=0)
