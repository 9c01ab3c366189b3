"""A whole Cityscapes image in single precision fits into six gibibytes, weights, libraries and scores included.

The peak is the process' own (VmHWM where there is one): a child's `ru_maxrss` starts at that of the process that made it.
"""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import numpy as np, torch
from PIL import Image
from noise2map.runs.peak_memory import read_peak
from noise2map.evaluation.official import find_protocol
from noise2map.evaluation.test_time import AugmentedImage
from noise2map.models import Noise2MapForSemanticSegmentation, Noise2MapImageProcessor
from noise2map.models.decoding import DecodingOptions
from noise2map.tasks import task_of
from noise2map.tasks.scoring import ScoringOptions
from noise2map.training.maps.build import make_config
from noise2map.training.maps.data import class_names
from noise2map.training.maps.recipe import load_recipe

torch.set_num_threads(1)
torch.manual_seed(0)
recipe = load_recipe("official/cityscapes-swin-t")
model = Noise2MapForSemanticSegmentation(make_config(recipe, class_names(recipe))).eval()
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), dtype=np.uint8))
plan = find_protocol("cityscapes", "segmentation", "official")
with torch.no_grad():
    seen = AugmentedImage(model, Noise2MapImageProcessor(do_resize=False), image, plan.views)
    encoded = read_peak(torch.device("cpu"))
    output = seen.decode(DecodingOptions(num_inference_steps=2), "a", (1024, 2048))
decoded = read_peak(torch.device("cpu"))
truth = torch.randint(0, 19, (1024, 2048), generator=torch.Generator().manual_seed(0))
scorer = task_of(model).scorer(model, ScoringOptions())
scorer.update(output, (1024, 2048), [0], [truth])
peak = read_peak(torch.device("cpu"))
print(json.dumps({
    "parameters": sum(p.numel() for p in model.parameters()), "shape": list(output.logits.shape),
    "steps": int(output.num_steps), "finite": bool(torch.isfinite(output.logits).all()),
    "encoded": encoded, "decoded": decoded, "peak": peak, "scores": scorer.scores(),
}))
"""


@pytest.mark.slow
def test_cityscapes_at_full_size_stays_within_six_gibibytes():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shape"] == [1, 19, 1024, 2048] and found["steps"] == 2 and found["finite"]
    assert round(found["parameters"] / 1e6, 2) == 39.57
    assert 0 < found["scores"]["mIoU"] < 1
    print({name: f"{found[name] / 2**30:.2f} GiB" for name in ("encoded", "decoded", "peak")})
    assert found["peak"] < 6 * 2**30
