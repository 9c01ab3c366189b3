"""Two CPU processes under ``accelerate launch`` (gloo)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import accelerate_launch, launch_environment
from tiny_denoising import write_pictures

SCRIPT = """
import sys
from pathlib import Path
import torch
from transformers import TrainingArguments
from tiny_training import RawSamples, tiny_model, tiny_processor
from noise2map import MapTrainer

torch.set_num_threads(1)
out = Path(sys.argv[1])
arguments = TrainingArguments(
    str(out), max_steps=4, per_device_train_batch_size=2, per_device_eval_batch_size=2, learning_rate=1e-2, logging_steps=1,
    save_steps=2, eval_strategy="no", seed=5, use_cpu=True, report_to="none", disable_tqdm=True, lr_scheduler_type="constant",
    gradient_accumulation_steps=int(sys.argv[2]),
)
trainer = MapTrainer(tiny_model(), arguments, train_dataset=RawSamples(16), eval_dataset=RawSamples(5, seed=1),
                     processing_class=tiny_processor(), eval_steps=(1, 3), sample_images=1, ema_half_life_images=8)
assert trainer.args.world_size == int(sys.argv[3]), trainer.args.world_size
trainer.train()
scores = trainer.evaluate()
torch.save({"weights": trainer.model.state_dict(), "scores": scores}, out / f"rank-{trainer.args.process_index}.pt")
trainer.export_final()
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_and_scores(tmp_path):
    """That they go on after a kill as if nothing had been is tested in `test_official_launch`."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = launch_environment()
    two = tmp_path / "two"
    subprocess.run([*accelerate_launch(2), str(script), str(two), "1", "2"], check=True, env=environment, timeout=300)
    first, second = (torch.load(two / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in first["weights"].items():
        if "running" not in name and "num_batches" not in name:  # batch statistics are each process's own
            assert torch.equal(tensor, second["weights"][name]), name
            assert torch.isfinite(tensor).all()
    assert first["scores"] == second["scores"] and 0 <= first["scores"]["eval_mIoU_3"] <= 1
    assert (two / "final" / "model.safetensors").exists()
    assert sorted(path.name for path in two.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


GENERATOR = """
import sys
from pathlib import Path
import torch
from tiny_denoising import recipe_dict
from noise2map.training.generators.build import make_generator_trainer
from noise2map.training.generators.recipe import GeneratorRecipe
from noise2map.training.recipe_files import build

out = Path(sys.argv[1])
recipe = recipe_dict(out.parent / "pictures", iterations=int(sys.argv[2]), save_every=1)
trainer = make_generator_trainer(build(GeneratorRecipe, recipe, ""), out)
assert trainer.args.world_size == 2
trainer.train(resume_from_checkpoint="--resume" in sys.argv)
scores = trainer.evaluate()
torch.save({"weights": trainer.model.state_dict(), "scores": scores}, out / f"rank-{trainer.args.process_index}.pt")
trainer.export_final()
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_train_one_generator(tmp_path):
    write_pictures(tmp_path / "pictures", 12)
    script = tmp_path / "script.py"
    script.write_text(GENERATOR)
    words = [*accelerate_launch(2), str(script), str(tmp_path / "run"), "2"]
    subprocess.run(words, check=True, env=launch_environment(), timeout=600)
    first, second = (torch.load(tmp_path / "run" / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert first["scores"] == second["scores"] and first["scores"]["eval_loss"] > 0
    assert (tmp_path / "run" / "final" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


ENCODER = """
import json
import sys
from pathlib import Path
import test_encoders

trainer = test_encoders.make_trainer(Path(sys.argv[1]), per_device_eval_batch_size=1)
scores = trainer.evaluate()
if trainer.is_world_process_zero():
    print("scores", json.dumps(scores))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_the_losses_of_an_encoder_are_those_of_all_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ENCODER)
    environment = launch_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment["PYTHONPATH"]])
    found = []
    for words in ([sys.executable], accelerate_launch(2)):  # two of the three images in one process, one in the other
        done = subprocess.run(
            [*words, str(script), str(tmp_path / "run")],
            check=True,
            env=environment,
            timeout=300,
            stdout=subprocess.PIPE,
            text=True,
        )
        found += [json.loads(line.removeprefix("scores ")) for line in done.stdout.splitlines() if line.startswith("scores ")]
    alone, together = found
    assert {name for name in alone if name.endswith("_loss")} == {"eval_labels_loss", "eval_depth_m_loss", "eval_normals_loss"}
    assert together == pytest.approx(alone, rel=1e-4)
