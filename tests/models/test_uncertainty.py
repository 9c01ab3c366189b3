"""Uncertainties against brute force from the steps of a run."""

import math

import pytest
import torch
from tiny_models import images, tiny_depth_model, tiny_segmenter
from torch.nn import functional

from noise2map.diffusion.ensemble import entropy
from noise2map.models import MapSegmenterOutput
from noise2map.models.aggregation import ProbabilityAggregator, Softmax
from noise2map.models.depth import DepthAggregator


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def scripted(steps, batch, samples, classes=4, seed=0):
    """Random logits of a run, ``(steps, B*R, K, 3, 5)``."""
    return torch.randn(steps, batch * samples, classes, 3, 5, generator=torch.Generator().manual_seed(seed)) * 3


def scripted_depth(steps, batch, samples):
    return scripted(steps, batch, samples, 1, seed=1).mul(0.1).exp() * 5


def consume(readout, stream, batch):
    for value in stream:
        readout.update(value, torch.ones(batch, dtype=torch.bool))
    return readout.result()


def entropy_of(p):
    return -sum(float(q) * math.log(float(q)) for q in p if q > 0) / math.log(len(p))


@pytest.mark.parametrize("average", ["last", "steps"])
@pytest.mark.parametrize(("steps", "samples"), [(1, 3), (4, 1), (4, 3)])
def test_class_map_uncertainties_by_brute_force(average, steps, samples):
    batch = 2
    stream = scripted(steps, batch, samples)
    logits, kinds = consume(ProbabilityAggregator(Softmax(), batch, samples, average), stream, batch)
    runs = stream.unflatten(1, (batch, samples))  # (S, B, R, K, h, w)
    for b in range(batch):
        for y in range(3):
            for x in range(5):
                here = runs[:, b, :, :, y, x]  # (S, R, K)
                # With "last" the samples of the last step are the members, or all steps of a single sample.
                members = here[-1] if average == "last" and samples > 1 else here.flatten(0, 1)
                p = members.softmax(-1)
                mean = p.mean(0)
                answer = here[-1].mean(0) if average == "last" else mean.log()
                assert torch.allclose(logits[b, :, y, x], answer, atol=1e-5)
                assert float(kinds["entropy"][b, y, x]) == pytest.approx(entropy_of(answer.softmax(0)), abs=1e-5)
                assert float(kinds["least_confidence"][b, y, x]) == pytest.approx(1 - float(answer.softmax(0).max()), abs=1e-5)
                variance = float(p.var(0, unbiased=False).sum())
                assert float(kinds["sample_variance"][b, y, x]) == pytest.approx(variance, abs=1e-5)
                information = entropy_of(mean) - sum(entropy_of(q) for q in p) / len(p)
                assert float(kinds["mutual_information"][b, y, x]) == pytest.approx(information, abs=1e-5)
                if steps > 1:
                    labels = here.argmax(-1)  # (S, R)
                    flips = float((labels[1:] != labels[:-1]).float().mean())
                    assert float(kinds["step_flip"][b, y, x]) == pytest.approx(flips, abs=1e-6)
    assert ("step_flip" in kinds) == (steps > 1)


@pytest.mark.parametrize("average", ["last", "steps"])
@pytest.mark.parametrize(("steps", "samples"), [(1, 3), (4, 1), (4, 3)])
def test_depth_uncertainties_by_brute_force(average, steps, samples):
    batch = 2
    stream = scripted_depth(steps, batch, samples)
    depth_m, kinds = consume(DepthAggregator(batch, samples, average, 0.05), stream, batch)
    runs = stream.squeeze(2).unflatten(1, (batch, samples)).double()  # (S, B, R, h, w)
    for b in range(batch):
        here = runs[:, b]
        members = here[-1] if average == "last" and samples > 1 else here.flatten(0, 1)
        answer = here[-1].mean(0) if average == "last" else members.mean(0)
        assert torch.allclose(depth_m[b, 0].double(), answer, rtol=1e-5)
        spread = members.std(0, unbiased=False) / members.mean(0)
        assert torch.allclose(kinds["sample_variance"][b].double(), spread, atol=1e-5)
        if steps > 1:
            ratio = torch.maximum(here[1:] / here[:-1], here[:-1] / here[1:])
            flips = (ratio > 1 + 0.05).double().flatten(0, 1).mean(0)
            assert 0 < float(flips.mean()) < 1
            assert torch.allclose(kinds["step_flip"][b].double(), flips, atol=1e-5)
    assert set(kinds) == {"sample_variance"} | ({"step_flip"} if steps > 1 else set())


def test_one_step_of_one_sample_has_an_entropy_and_nothing_else():
    _, kinds = consume(ProbabilityAggregator(Softmax(), 1, 1, "last"), scripted(1, 1, 1), 1)
    assert set(kinds) == {"entropy", "least_confidence"}
    _, kinds = consume(DepthAggregator(1, 1, "last"), scripted_depth(1, 1, 1), 1)
    assert kinds == {}


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 50.0])
@pytest.mark.parametrize("average", ["last", "steps"])
def test_all_lie_between_zero_and_one(scale, average):
    _, kinds = consume(ProbabilityAggregator(Softmax(), 2, 3, average), scripted(4, 2, 3) * scale, 2)
    assert set(kinds) == {"step_flip", "entropy", "least_confidence", "sample_variance", "mutual_information"}
    for name, value in kinds.items():
        assert value.shape == (2, 3, 5), name
        assert 0 <= float(value.min()) <= float(value.max()) <= 1, name
    _, kinds = consume(DepthAggregator(2, 3, average), (scripted(4, 2, 3, 1) * scale).clamp(-20, 20).exp(), 2)
    for name, value in kinds.items():
        assert 0 <= float(value.min()) <= float(value.max()) <= 1, name


def test_agreement_is_certain_and_disagreement_is_not():
    same = torch.zeros(3, 2, 4, 1, 1)
    same[:, :, 1] = 100.0
    _, kinds = consume(ProbabilityAggregator(Softmax(), 1, 2, "steps"), same, 1)
    assert all(float(value.max()) < 1e-6 for value in kinds.values())
    alternating = same.clone()
    alternating[1] = same[1].roll(1, dims=1)
    _, kinds = consume(ProbabilityAggregator(Softmax(), 1, 2, "steps"), alternating, 1)
    assert float(kinds["step_flip"]) == 1
    assert float(kinds["mutual_information"]) == pytest.approx(entropy_of(torch.tensor([0, 2 / 3, 1 / 3, 0])), abs=1e-5)


def test_a_step_tells_which_fraction_changed():
    readout = ProbabilityAggregator(Softmax(), 2, 1, "last")
    active = torch.ones(2, dtype=torch.bool)
    logits = torch.zeros(2, 3, 2, 2)
    logits[:, 0] = 1
    assert readout.update(logits, active).tolist() == [1, 1]  # the first step changes everything
    after = logits.clone()
    after[1, 2, 0, 0] = 5
    assert readout.update(after, active).tolist() == [0, 0.25]


@pytest.mark.parametrize("average", ["last", "steps"])
@pytest.mark.parametrize("samples", [1, 2])
def test_images_that_stopped_keep_what_they_had(average, samples):
    stream = scripted(4, 2, samples)
    readout = ProbabilityAggregator(Softmax(), 2, samples, average)
    for i, value in enumerate(stream):
        readout.update(value, torch.tensor([True, i < 2]))
    logits, kinds = readout.result()
    assert readout.num_steps.tolist() == [4, 2]
    alone, kinds_alone = consume(ProbabilityAggregator(Softmax(), 1, samples, average), stream[:2, samples:], 1)
    assert torch.allclose(logits[1:], alone)
    for name, value in kinds_alone.items():
        assert torch.allclose(kinds[name][1:], value, atol=1e-6), name


def test_the_output_carries_the_configured_kind():
    for kind in ("entropy", "least_confidence", "step_flip", "sample_variance", "mutual_information"):
        out = tiny_segmenter(uncertainty=kind)(pixel_values=images(2), num_inference_steps=2, output_uncertainty=True)
        assert torch.equal(out.uncertainty, out.uncertainties[kind])
        assert out.uncertainty.shape == (2, 64, 64)
    out = tiny_segmenter()(pixel_values=images(), num_inference_steps=1)
    assert torch.equal(out.uncertainty, out.uncertainties["entropy"])
    out = tiny_depth_model()(pixel_values=images(), ensemble_size=2, num_inference_steps=1)
    assert torch.equal(out.uncertainty, out.uncertainties["sample_variance"])


@pytest.mark.parametrize(("make", "kind"), [(tiny_segmenter, "scale"), (tiny_depth_model, "entropy")])
def test_kinds_of_another_task_are_refused(make, kind):
    with pytest.raises(ValueError, match=f"uncertainty is '{kind}'; expected None or one of '"):
        make(uncertainty=kind)


def test_asking_for_an_uncertainty_that_a_run_does_not_have():
    out = tiny_depth_model()(pixel_values=images(), num_inference_steps=1)
    assert out.uncertainty is None
    assert out.uncertainties == {}
    with pytest.raises(ValueError, match=r"'sample_variance' is not defined for one step of one sample"):
        tiny_depth_model()(pixel_values=images(), num_inference_steps=1, output_uncertainty=True)
    with pytest.raises(ValueError, match=r"'step_flip' is not defined .*\['entropy', 'least_confidence'\]"):
        tiny_segmenter(uncertainty="step_flip")(pixel_values=images(), num_inference_steps=1, output_uncertainty=True)


@pytest.mark.parametrize(
    "options", [{"num_inference_steps": 1}, {"ensemble_size": 3, "num_inference_steps": 2, "average": "steps"}]
)
def test_at_full_size_they_are_those_of_the_resized_probabilities(options):
    model = tiny_segmenter()
    cells = model.decode_map(model.encode_image(images(2)), generator=[torch.Generator().manual_seed(i) for i in (0, 1)], **options)
    logits = functional.interpolate(cells.logits, size=(64, 64), mode="bilinear", align_corners=False)
    if cells.log_probabilities:
        logits = functional.interpolate(cells.logits.exp(), size=(64, 64), mode="bilinear", align_corners=False).log()
    p = functional.interpolate(logits if not cells.log_probabilities else logits.exp(), size=(50, 70), mode="bilinear")
    p = p / p.sum(1, keepdim=True) if cells.log_probabilities else p.softmax(1)
    entropy = -(p * p.log()).sum(1) / math.log(5)
    found = cells.uncertainties_at((64, 64), (50, 70), rows=[1])
    assert torch.allclose(found["entropy"], entropy[1:], atol=1e-5)
    assert torch.allclose(found["least_confidence"], 1 - p[1:].amax(1), atol=1e-5)
    assert set(found) == set(cells.uncertainties)
    assert set(cells.uncertainties_at((64, 64), kinds=["entropy"])) == {"entropy"}


def test_logarithms_of_probabilities_at_their_own_size_are_read_as_logits():
    p = torch.randn(1, 5, 6, 4, generator=torch.Generator().manual_seed(0)).mul(5).softmax(1)
    kinds = {name: torch.zeros(1, 6, 4) for name in ("entropy", "least_confidence")}
    found = MapSegmenterOutput(logits=p.log(), log_probabilities=True, uncertainties=kinds).uncertainties_at((6, 4))
    assert torch.allclose(found["entropy"], -(p * p.log()).sum(1) / math.log(5), atol=1e-6)
    assert torch.allclose(found["least_confidence"], 1 - p.amax(1), atol=1e-6)


def test_an_edge_between_certain_cells_is_uncertain():
    """Two cells, each certain of another class: halfway between them nobody knows, which no interpolated entropy says."""
    logits = torch.tensor([[50.0, -50.0], [-50.0, 50.0]]).view(1, 2, 1, 2)
    out = MapSegmenterOutput(logits=logits, uncertainties={"entropy": torch.zeros(1, 1, 2), "step_flip": torch.zeros(1, 1, 2)})
    found = out.uncertainties_at((1, 3))
    assert float(found["entropy"][0, 0, 1]) == pytest.approx(1) and float(found["entropy"][0, 0, ::2].max()) < 1e-6
    assert float(found["step_flip"].max()) == 0


def test_mutual_information_at_full_size_is_that_of_the_samples():
    model = tiny_segmenter()
    cells = model.decode_map(model.encode_image(images()), num_inference_steps=1, ensemble_size=3, output_samples=True)
    p = functional.interpolate(cells.samples[0], size=(64, 64), mode="bilinear", align_corners=False).softmax(1)
    expected = entropy(p.mean(0), 0) - entropy(p, 1).mean(0)
    assert torch.allclose(cells.uncertainties_at((64, 64))["mutual_information"][0], expected.clamp(min=0), atol=1e-6)


def test_class_ids_have_no_probabilities_to_compute_from():
    stored = torch.full((1, 4, 4), 0.3)
    out = MapSegmenterOutput(logits=torch.ones(1, 1, 8, 8), uncertainties={"entropy": stored})
    assert torch.allclose(out.uncertainties_at((8, 8))["entropy"], torch.full((1, 8, 8), 0.3))


def test_variance_of_nearly_equal_probabilities_is_not_rounding():
    """Probabilities of a half that differ by a hundred-thousandth: their variance is 1e-10, too little for squares in float32."""
    run = ProbabilityAggregator(Softmax(), 1, 2, "last")
    logits = torch.zeros(2, 2, 1, 1)
    logits[1, 0] = 4e-5
    run.update(logits, torch.ones(1, dtype=torch.bool))
    expected = float(logits.double().softmax(1).var(0, correction=0).sum())
    assert float(run.result()[1]["sample_variance"]) == pytest.approx(expected, rel=0.02)


def test_depth_counts_as_changed_beyond_a_tolerance():
    assert tiny_depth_model(flip_tolerance=0.2).make_aggregator(1, 1, "last").flip_tolerance == 0.2
    for tolerance, flips in ((0.05, 1.0), (0.2, 0.0)):
        run = DepthAggregator(1, 1, "last", tolerance)
        for depth_m in (10.0, 11.0):
            run.update(torch.full((1, 1, 1, 1), depth_m), torch.ones(1, dtype=torch.bool))
        assert float(run.result()[1]["step_flip"]) == flips
    with pytest.raises(ValueError, match="flip_tolerance is 0"):
        tiny_depth_model(flip_tolerance=0)


def test_temperature_moves_confidence_and_not_the_map():
    noise = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    cold, hot = (tiny_segmenter(temperature=t)(pixel_values=images(), noise=noise) for t in (1.0, 3.0))
    assert torch.allclose(cold.logits / 3, hot.logits, atol=1e-5)
    assert torch.equal(cold.logits.argmax(1), hot.logits.argmax(1))
    assert bool((hot.uncertainty >= cold.uncertainty - 1e-6).all())
    assert float(hot.uncertainty.mean()) > float(cold.uncertainty.mean()) + 0.01
    model = tiny_segmenter()
    model.config.temperature = 3.0  # as `noise2map.metrics.fit_temperature` says
    assert torch.equal(model(pixel_values=images(), noise=noise).logits, hot.logits)


@pytest.mark.parametrize("average", ["last", "steps"])
def test_samples_beside_a_map_do_not_change_its_uncertainty(average):
    """Mutual information of one sample is over its steps; taken anew from the sample it was nothing everywhere."""
    model, pixels = tiny_segmenter(), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for samples in (False, True):
        options = {"generator": torch.Generator().manual_seed(1), "average": average, "output_samples": samples}
        with torch.no_grad():
            found.append(model(pixels, num_inference_steps=3, **options).uncertainties)
    assert found[0].keys() == found[1].keys() and found[0]["mutual_information"].max() > 1e-3
    for name, values in found[0].items():
        assert torch.allclose(values, found[1][name], atol=1e-5), name
