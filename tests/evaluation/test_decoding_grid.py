"""The grid of protocols."""

from dataclasses import replace

import pytest
from tiny_models import tiny_segmenter

from noise2map.evaluation.protocols import protocol_grid
from noise2map.evaluation.run import EvaluationOptions, _protocols
from noise2map.models.decoding import Protocol


def test_impossible_choices_are_refused():
    with pytest.raises(ValueError, match="sampler is 'euler'; expected one of 'ddim', 'ddpm'"):
        protocol_grid([1], [1], ["last"], "euler")
    with pytest.raises(ValueError, match="steps needs at least one value"):
        protocol_grid([], [1], ["last"])


def test_the_grid_names_no_protocol_twice():
    """The mean over one step is the last step; over several samples it still is."""
    grid = protocol_grid([1, 3, "auto"], [1, 4], ["last", "steps"], samplings=["diffusion"])
    assert len(grid) == 2 + 4 + 4 == len(set(grid))
    once = [replace(Protocol(1, samples, "last"), refine=None) for samples in (1, 4)]  # which tokens is left to the checkpoint
    assert [p for p in grid if p.num_inference_steps == 1] == once


def test_a_name_says_everything():
    assert Protocol(1).name == "1 step, last, ddim"
    assert Protocol(3, 4, "steps", "ddpm").name == "3 steps x 4 samples, steps, ddpm"
    assert Protocol("auto").name == "auto steps, last, ddim"


def test_a_field_is_tried_at_every_smoothness_and_a_run_is_not():
    grid = protocol_grid([1, 3, "auto"], [4], ["last"], samplings=["diffusion", "field"], smoothness=[0.0, 2.0])
    found = [(one.sampling, one.num_inference_steps, one.field_smoothness) for one in grid]
    runs = [("diffusion", 1, None), ("diffusion", 3, None), ("diffusion", "auto", None)]
    assert found == [*runs, ("field", 1, 0.0), ("field", 3, 0.0), ("field", 1, 2.0), ("field", 3, 2.0)]
    assert len({one.name for one in grid}) == 7


def test_a_share_is_refined_where_there_are_later_steps():
    grid = protocol_grid([1, 3], [1], ["last"], refinements=["all", "uncertain"], shares=[0.5, 0.3])
    found = [(one.num_inference_steps, one.refine, one.refine_share) for one in grid]
    assert found == [(1, "all", None), (3, "all", None), (3, "uncertain", 0.5), (3, "uncertain", 0.3)]
    assert len({one.name for one in grid}) == 4
    grid = protocol_grid([1, 3], [1], ["last"], refinements=["uncertain"], thresholds=[0.2, 0.1])
    assert [(one.num_inference_steps, one.refine_threshold) for one in grid] == [(1, None), (3, 0.2), (3, 0.1)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [(None, "field"), ("one_pass", "diffusion"), ("diffusion", "diffusion"), ("field", "field")],
)
def test_the_one_pass_of_a_model_that_draws_fields_is_no_draw(sampling, expected):
    """What was asked for is scored: the mean of a low-rank normal (SSN), whose own way is a sample of it."""
    model = tiny_segmenter(diffusion=False, objective="low_rank", sampling="field")
    grid = protocol_grid([1], [1], ["last"], samplings=[sampling])
    options = EvaluationOptions(models=["ssn"], protocols=grid, steps_chosen=sampling is not None)
    assert [one.sampling for one in _protocols(options, model, "ssn", True)] == [expected]
