"""The premise of the method on a toy: a trained decoder reads the map it is shown. The images say nothing; the map says all."""

import math

import pytest
import torch
from tiny_models import class_map, tiny_segmenter

CLASSES, BATCH, SIZE = 3, 8, 32
BLANK = torch.zeros(BATCH, 3, SIZE, SIZE)


@pytest.fixture(scope="module")
def trained():
    fields = {"num_labels": CLASSES, "use_auxiliary_head": False, "map_scale": 0.5, "time_input": "time"}
    model = tiny_segmenter(**fields).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(70):
        optimizer.zero_grad()
        model(
            pixel_values=BLANK, labels=class_map(BATCH, SIZE, SIZE, CLASSES, seed=100 + step), generator=generator
        ).loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def loss_at(model, time, labels, shown=None):
    """Cross-entropy of one decoder call at one noise level, shown the true map or that of other labels."""
    out = model(
        pixel_values=BLANK,
        labels=labels if shown is None else shown,
        timesteps=torch.full((BATCH,), time),
        generator=torch.Generator().manual_seed(1),
    )
    logits = torch.nn.functional.interpolate(out.logits, size=labels.shape[-2:], mode="bilinear")
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=255).item()


def test_the_loss_falls_when_the_truth_is_shown(trained):
    labels = class_map(BATCH, SIZE, SIZE, CLASSES, seed=1)
    losses = [loss_at(trained, time, labels) for time in (1.0, 0.6, 0.3, 0.0)]
    assert losses == sorted(losses, reverse=True)  # the clearer the map, the smaller the loss
    assert losses[0] > 0.95 * math.log(CLASSES)  # pure noise and an empty image: nothing can be known
    assert losses[-1] < 0.35  # the truth with hardly any noise
    other = class_map(BATCH, SIZE, SIZE, CLASSES, seed=2)
    assert loss_at(trained, 0.0, labels, shown=other) > math.log(CLASSES)  # it believes what it is shown
