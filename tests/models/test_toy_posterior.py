"""Worlds whose posterior is known: samples must come up as often as they are true, and hang together as the truth does."""

import pytest
import torch
from tiny_models import tiny_segmenter

from noise2map.metrics.samples import LabelSampleScores
from noise2map.models.denoising import training_loss

PRIOR = torch.tensor([0.6, 0.3, 0.1])
MATCHED = {"matched_filter": True, "map_encoding": "one_hot", "num_labels": 3, "use_auxiliary_head": False}
RIGHT = {"time_difference": 0.0, "feedback": "mean"}


def bayes(**fields):
    """The exact denoiser of independent pixels: a network that says the prior, and the matched filter."""
    model = tiny_segmenter(**(MATCHED | {"map_scale": 1.0} | fields)).eval()
    with torch.no_grad():
        model.head.classifier.weight.zero_()
        model.head.classifier.bias.copy_(PRIOR.log())
    return model


@torch.no_grad()
def drawn(model, steps, samples=2, size=60, **options):
    """Class ids (1, R, h, w)."""
    features = torch.zeros(1, model.config.hidden_size, size, size)
    generator = torch.Generator().manual_seed(0)
    return model.decode_map(
        features, steps, samples, "last", sampling="diffusion", generator=generator, output_samples=True, **options
    ).samples.argmax(2)


def frequencies(ids):
    return ids.flatten().bincount(minlength=3) / ids.numel()


@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"), [("ddim", 10, 0.03), ("ddim", 30, 0.02), ("ddpm", 30, 0.03), ("dpmpp_2m", 10, 0.03)]
)
def test_the_right_sampler_draws_classes_as_often_as_they_are_true(sampler, steps, tolerance):
    found = frequencies(drawn(bayes(**RIGHT), steps, sampler=sampler))
    assert torch.allclose(found, PRIOR, atol=tolerance), found


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"time_difference": 0.0, "feedback": "argmax"}, 0.8),  # every step jumps to a corner
        ({"time_difference": 1.0, "feedback": "mean"}, 0.7),  # a mode-seeking device, however many the steps
        ({"time_difference": 1.0, "feedback": "argmax"}, 0.9),  # as published
    ],
)
@pytest.mark.parametrize("steps", [3, 30])
def test_the_published_sampler_draws_the_likeliest_class_too_often(fields, least, steps):
    assert frequencies(drawn(bayes(**fields), steps))[0] > least


def of_squares(side, **fields):
    """The exact denoiser of a world in which all cells of a square are of one class."""
    model = bayes(**(RIGHT | fields))
    of_cells = model.evidence

    def of_whole_squares(x_t, alpha, sigma):
        found = of_cells(x_t, alpha, sigma).unfold(2, side, side).unfold(3, side, side).sum((-1, -2))
        return found.repeat_interleave(side, 2).repeat_interleave(side, 3)

    model.evidence = of_whole_squares
    return model


@pytest.mark.parametrize(("side", "scale"), [(1, 1.0), (4, 0.25), (8, 0.125), (8, 0.2)])
def test_parts_of_a_map_are_drawn_as_often_as_they_are_true_at_a_scale_that_fits_their_size(side, scale):
    ids = drawn(of_squares(side, map_scale=scale), 10, samples=8, size=96)
    assert all(torch.equal(ids[..., ::side, ::side], ids[..., row::side, row::side]) for row in range(side))  # whole squares
    found = frequencies(ids[..., ::side, ::side].contiguous())
    assert torch.allclose(found, PRIOR, atol=0.04), found


def test_at_a_scale_for_single_cells_the_likeliest_class_of_large_parts_is_drawn_too_often():
    # What they are is settled at the noisiest levels, between the first two of ten steps, where only the mean is fed back.
    found = [
        frequencies(drawn(of_squares(side, map_scale=1.0), 10, 8, 96)[..., ::side, ::side].contiguous())[0] for side in (4, 8, 16)
    ]
    assert found == sorted(found) and found[-1] > 0.8, found


def test_one_call_is_the_marginal_itself():
    model = bayes(**RIGHT)
    features = torch.zeros(1, model.config.hidden_size, 4, 4)
    with torch.no_grad():
        said = model.decode_map(features, 1, 1, sampling="diffusion").logits.softmax(1)
    assert torch.allclose(said, PRIOR.view(1, 3, 1, 1).expand_as(said), atol=1e-5)


def test_scores_tell_the_right_sampler_from_the_published_one():
    truth = torch.multinomial(PRIOR, 60 * 60, replacement=True, generator=torch.Generator().manual_seed(1)).view(1, 60, 60)
    found = {}
    for name, fields in (("right", RIGHT), ("published", {"time_difference": 1.0, "feedback": "argmax"})):
        metric = LabelSampleScores(3, 4)
        metric.update(drawn(bayes(**fields), 10, samples=4), truth)
        found[name] = {score: value.item() for score, value in metric.compute().items()}
    assert found["right"]["spread_skill"] == pytest.approx(1, abs=0.06) and found["published"]["spread_skill"] < 0.5
    assert found["right"]["ged_pixel"] == pytest.approx(1 - PRIOR.square().sum().item(), abs=0.03)  # Brier score of the prior
    assert found["right"]["energy"] < found["published"]["energy"]
    # a posterior sample is wrong more often than the mode, which is what the published sampler returns
    assert found["right"]["wrong_sample"] > found["published"]["wrong_sample"] + 0.1


@pytest.fixture(scope="module")
def whole():
    """A matched model trained where every map is of one class, drawn from the prior, and images say nothing."""
    model = tiny_segmenter(
        **MATCHED, **RIGHT, map_scale=1.0, time_input="time", time_sampling="logit_normal", time_mean=0.5
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    features = torch.zeros(16, model.config.hidden_size, 8, 8)
    for _ in range(300):
        labels = torch.multinomial(PRIOR, 16, replacement=True, generator=generator).view(16, 1, 1).expand(16, 32, 32)
        loss, _ = training_loss(model, features, labels, None, None, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_a_trained_model_reads_the_truth_and_draws_whole_maps(whole):
    generator = torch.Generator().manual_seed(5)
    features = torch.zeros(200, whole.config.hidden_size, 8, 8)
    labels = torch.multinomial(PRIOR, 200, replacement=True, generator=generator).view(200, 1, 1).expand(200, 32, 32)
    with torch.no_grad():
        context, truth = whole.decoder.prepare(features), whole.encode_labels(labels, (8, 8))
        losses = []
        for t in (1.0, 0.9, 0.7):
            alpha, sigma = whole.schedule.alpha_sigma(torch.tensor(t))
            x_t = alpha * truth + sigma * torch.randn(truth.shape, generator=generator)
            losses.append(whole.loss(whole.predict_at(context, x_t, torch.full((200,), t)), labels).item())
        out = whole.decode_map(features, 10, 4, "last", sampling="diffusion", generator=generator, output_samples=True)
    assert losses[0] == pytest.approx(-(PRIOR * PRIOR.log()).sum().item(), abs=0.1)  # the entropy: nothing can be known
    assert losses[1] < 0.7 * losses[0] and losses[2] < 0.05  # many cells together are read long before one is
    scores = []
    independent = torch.multinomial(PRIOR, 200 * 4 * 64, replacement=True, generator=generator).view(200, 4, 8, 8)
    for ids in (out.samples.argmax(2), independent):
        metric = LabelSampleScores(3, 4, patch=32)
        metric.update(ids.repeat_interleave(4, -1).repeat_interleave(4, -2), labels)
        scores.append({name: value.item() for name, value in metric.compute().items()})
    drawn, control = scores
    assert drawn["edge_share"] < 0.05 and control["edge_share"] > 0.1  # whole maps, at the edges of cells of four pixels
    assert drawn["energy"] < 0.9 * control["energy"] and drawn["ged_iou"] < control["ged_iou"]
    assert drawn["spread_skill"] > 0.6 and frequencies(out.samples.argmax(2))[0] < 0.9
