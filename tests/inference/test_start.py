"""What a prediction imports: each of these costs every command that runs a model its seconds."""

import subprocess
import sys

# Scores, plots, training, other people's models and files of formats that are not there.
NOT_NEEDED = (
    "torchmetrics", "scipy.signal", "matplotlib.pyplot", "matplotlib.axes", "sklearn", "pandas", "diffusers", "peft", "datasets",
    "onnx", "onnxruntime", "onnxscript", "torchvision", "timm", "cv2", "h5py", "lmdb", "numba",
    "tensorboard", "transformers.trainer", "transformers.pipelines", "transformers.models.depth_anything.modeling_depth_anything",
    "noise2map.training", "noise2map.evaluation", "noise2map.generation", "noise2map.guidance", "noise2map.bench",
    "noise2map.demo", "noise2map.app", "noise2map.video", "noise2map.cluster", "ray", "av", "pyarrow",
)  # fmt: skip


def test_a_prediction_imports_what_it_needs():
    code = f"""
import sys
import numpy
from noise2map.inference.predictor import Predictor

predictor = Predictor.from_pretrained("freedoom-segmentation-tiny", "cpu")
assert predictor(numpy.zeros((64, 64, 3), numpy.uint8), num_inference_steps=1)[0].labels.shape == (64, 64)
print([name for name in {NOT_NEEDED!r} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_scores_are_imported_when_they_are_asked_for():
    code = """
import sys
from noise2map import metrics, tasks

task = tasks.get_task("depth")
print("torchmetrics" in sys.modules)
print(metrics.samples.ScaleScores.__name__, metrics.DepthScores.__name__, "torchmetrics" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "ScaleScores", "DepthScores", "True"]
