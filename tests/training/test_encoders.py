"""An encoder trained on several kinds of maps at once, and what starts from it."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny_bev import tiny_bev
from tiny_training import CLASSES, RawSamples, tiny_config, tiny_model, tiny_processor
from transformers import TrainingArguments

from noise2map.data.transforms import HorizontalFlip
from noise2map.tasks import IMAGE_TASKS, get_task
from noise2map.training import LearningRateCurve, read_metrics
from noise2map.training.encoders.model import JointEncoder, LogDepthHead
from noise2map.training.encoders.recipe import encoder_recipe_names, load_encoder_recipe
from noise2map.training.encoders.trainer import EncoderTrainer, JointCollator
from noise2map.training.maps.build import copy_encoder


class AllMaps(RawSamples):
    """The samples of `RawSamples` with normals that depend on the class."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        directions = np.array([[0, 1, 0], [0.6, 0, 0.8], [0, 0, 0]], np.float32)
        sample["normals"] = directions[np.minimum(sample["labels"], 2)]
        return sample


def joint_encoder(seed=0, **fields):
    torch.manual_seed(seed)
    return JointEncoder(tiny_config(id2label=CLASSES, min_depth=0.5, max_depth=10.0, **fields))


def make_trainer(directory, seed=0, **fields):
    arguments = TrainingArguments(
        str(directory), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, save_steps=2, seed=5,
        use_cpu=True, report_to="none", disable_tqdm=True, **fields,
    )  # fmt: skip
    return EncoderTrainer(
        joint_encoder(seed),
        arguments,
        train_dataset=AllMaps(5),
        eval_dataset=AllMaps(3, seed=1),
        processing_class=tiny_processor(),
        transform=HorizontalFlip(0.5),
        curve=LearningRateCurve("cosine", iterations=4, warmup_iterations=1),
        ema_half_life_images=4,
    )


def batch_of(count=2):
    tasks = [get_task(name) for name in IMAGE_TASKS]
    return JointCollator(tiny_processor(), tasks)([AllMaps(count)[index] for index in range(count)])


def test_depth_is_scored_by_a_laplace_distribution():
    head = LogDepthHead(tiny_config(min_depth=0.5, max_depth=10.0))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 2, 4, 6, generator=generator).clamp(-2, 2)
    truth = torch.rand(2, 4, 6, generator=generator) * 5
    truth[0, :2] = 0
    middle = 0.5 * math.log(0.5 * 10.0)
    expected = -torch.distributions.Laplace(values[:, 0] + middle, values[:, 1].exp()).log_prob(truth.log())[truth > 0].mean()
    assert head.loss(values, truth) == pytest.approx(float(expected), rel=1e-5)
    assert float(head.loss(values, torch.zeros_like(truth)).detach()) == 0
    assert torch.allclose(head.maps(values, (4, 6)), (values[:, 0] + middle).exp())


def test_every_kind_of_map_teaches_the_encoder():
    model = joint_encoder()
    batch = batch_of()
    output = model(**batch)
    weighted = sum(model.loss_weights[name] * float(loss.detach()) for name, loss in output.losses.items())
    assert float(output.loss.detach()) == pytest.approx(weighted, rel=1e-5)
    for name in output.losses:
        model.zero_grad()
        model(**batch).losses[name].backward()
        assert model.encoder.merge.conv.weight.grad.abs().sum() > 0, name
    model.zero_grad()
    model(**batch).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path):
    whole = make_trainer(tmp_path / "whole", eval_strategy="steps", eval_steps=4)
    whole.train()
    scores = read_metrics(tmp_path / "whole")[-2]
    assert {"eval_mIoU", "eval_abs_rel", "eval_mean_angle", "eval_labels_loss"} <= set(scores)
    broken = make_trainer(tmp_path / "broken")
    broken.train()
    (tmp_path / "broken" / "checkpoint-4" / "complete").unlink()
    resumed = make_trainer(tmp_path / "broken", seed=9)
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_models_start_from_the_encoder(tmp_path, task):
    make_trainer(tmp_path).export_final()
    trained, model = JointEncoder.from_pretrained(tmp_path / "final").eval(), tiny_model(task).eval()
    copy_encoder(str(tmp_path / "final"), model)
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), trained.encoder(pixels))


def test_birds_eye_view_takes_the_backbone_alone(tmp_path):
    model = tiny_bev()
    backbone = copy.deepcopy(model.config.backbone_config)
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    encoder = joint_encoder(backbone_config=backbone)
    encoder.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    copy_encoder(str(tmp_path), model)
    given = encoder.encoder.backbone.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in model.encoder.camera.backbone.state_dict().items())


def test_an_encoder_of_another_size_is_refused(tmp_path):
    joint_encoder(hidden_size=32).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder of other sizes than the recipe's"):
        copy_encoder(str(tmp_path), tiny_model())


def test_recipes():
    assert encoder_recipe_names() == ["freedoom-encoder-tiny"]
    recipe = load_encoder_recipe("freedoom-encoder-tiny", ["data.train_limit=8"])
    assert recipe.data.train_limit == 8 and recipe.image_size() == (160, 120)
    with pytest.raises(ValueError, match=r"data\.train_limit is -1; expected 0 or more"):
        load_encoder_recipe("freedoom-encoder-tiny", ["data.train_limit=-1"])
    with pytest.raises(FileNotFoundError, match="noise2map data"):
        load_encoder_recipe("freedoom-encoder-tiny", ["data.train=nowhere"]).check_folders()
