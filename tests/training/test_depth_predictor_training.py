import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from noise2map.guidance import DepthPredictor, UNetFeatureTap
from noise2map.training.generators.depth_predictor import fit_depth_predictor, masked_l1, score_depth_predictor


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def scenes(count):
    """Images whose brightness is their depth: even a random U-Net's features carry it."""
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(count, 1, 2, 2, generator=generator)
    depth = torch.nn.functional.interpolate(depth, (16, 16), mode="bilinear")[:, 0]
    return (depth * 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1), depth


LOG_SNR_OF = torch.logit(DDPMScheduler().alphas_cumprod.double()).tolist()
SMALL = {"hidden_sizes": (16, 8), "time_embed_dim": 8, "min_log_snr": LOG_SNR_OF[59]}


def test_learns_depth_from_frozen_features(unet):
    images, depths = scenes(32)
    before = [parameter.clone() for parameter in unet.parameters()]
    steps = []
    fit = fit_depth_predictor(
        unet, images, depths, num_steps=80, learning_rate=1e-2, on_step=lambda step, losses: steps.append(step), **SMALL
    )
    assert steps == list(range(80)) and set(fit.history[0]) == {"2,4,5,6,7", "6"}
    # Block 6 alone of a random U-Net has 8 channels and tells less than five blocks together.
    for name, fraction in (("2,4,5,6,7", 0.7), ("6", 0.9)):
        losses = [row[name] for row in fit.history]
        assert sum(losses[-10:]) < fraction * sum(losses[:10]), name
    assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters()))
    assert all(parameter.grad is None for parameter in unet.parameters())
    features = {}
    with torch.no_grad(), UNetFeatureTap(unet) as tap:
        unet(images.float() / 127.5 - 1, 0)
        features = tap.features
        found = fit.predictor.decode_depth(fit.predictor(features, 0))
    assert (found - depths).abs().mean() < 0.6 * (depths - depths.mean()).abs().mean()
    standard = torch.cat([fit.predictor.standardizers[str(k)](features[k]).flatten() for k in features])
    assert standard.abs().mean() < 3


def test_mirrored_images_have_mirrored_depth(unet):
    """Left is near and right is far in every scene, and half of them are mirrored in training."""
    depth = torch.linspace(0.1, 0.9, 16).expand(16, 16)[None].repeat(4, 1, 1)
    images = (depth * 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    fit = fit_depth_predictor(unet, images, depth, num_steps=60, batch_size=4, learning_rate=1e-2, flip=True, **SMALL)
    for mirror in (False, True):
        shown, true = (images.flip(-1), depth.flip(-1)) if mirror else (images, depth)
        with torch.no_grad(), UNetFeatureTap(unet) as tap:
            unet(shown.float() / 127.5 - 1, 0)
            found = fit.predictor.decode_depth(fit.predictor(tap.features, 0))
        # Depth that is not mirrored with its image is wrong by 0.42.
        assert (found - true).abs().mean() < 0.1, mirror


def test_learns_at_noise_and_not_only_without(unet):
    """With noise, a predictor trained at all its time steps is better than one that has seen clean images only."""
    images, depths = scenes(32)
    options = {"num_steps": 60, "batch_size": 4, "learning_rate": 1e-2, "flip": False}
    l1 = {}
    for highest in (1, 400):
        fields = {**SMALL, "min_log_snr": LOG_SNR_OF[highest - 1]}
        predictor = fit_depth_predictor(unet, images, depths, **options, **fields).predictor
        rows = score_depth_predictor(unet, predictor, images, depths, timesteps=(0, 350))
        l1[highest] = {row["timestep"]: row["l1"] for row in rows if row["blocks"] == "2,4,5,6,7"}
    assert l1[400][350] < 0.95 * l1[1][350] and l1[1][0] < l1[400][0]
    constant = 2 * (depths - depths.mean()).abs().mean().item()  # of the best constant, in units of the signal
    assert l1[400][0] < 0.6 * constant and l1[400][350] < 0.9 * constant


def test_bfloat16_learns_the_same(unet):
    images, depths = scenes(32)
    exact, fast = (
        fit_depth_predictor(unet, images, depths, num_steps=40, learning_rate=1e-2, bf16=bf16, **SMALL) for bf16 in (False, True)
    )
    assert exact.history != fast.history
    for one, two in zip(exact.history[::10], fast.history[::10]):
        assert one == pytest.approx(two, rel=0.05)
    assert {weight.dtype for weight in fast.predictor.parameters()} == {torch.float32}


def test_same_seed_same_predictor(unet):
    images, depths = scenes(4)
    one, two = (fit_depth_predictor(unet, images, depths, num_steps=2, batch_size=2, seed=3, **SMALL) for _ in range(2))
    assert one.history == two.history
    further = fit_depth_predictor(unet, images, depths, num_steps=1, batch_size=2, predictor=one.predictor)
    assert further.predictor is one.predictor


def test_scores_by_branch_and_noise(unet):
    images, depths = scenes(5)
    depths = 1 + 3 * depths
    depths[0, :8] = 0
    metric = {**SMALL, "min_depth": 0.5, "max_depth": 5.0, "depth_representation": "linear", "probe_blocks": [[2]]}
    predictor = DepthPredictor.for_unet(unet, **metric).eval()
    rows = score_depth_predictor(unet, predictor, images, depths, timesteps=(0, 500), batch_size=2)
    assert [(row["timestep"], row["blocks"]) for row in rows] == [(t, b) for t in (0, 500) for b in ("2,4,5,6,7", "6", "2")]
    assert all(row["images"] == 5 for row in rows)
    other = score_depth_predictor(unet, predictor, images, depths, timesteps=(500,), batch_size=5)
    for one, two in zip(rows[3:], other):
        assert one["abs_rel"] == pytest.approx(two["abs_rel"], rel=1e-4) and one["l1"] == pytest.approx(two["l1"], rel=1e-4)
    # At time step 0 there is next to no noise: by hand, from the clean images.
    with torch.no_grad(), UNetFeatureTap(unet) as tap:
        unet(images.float() / 127.5 - 1, 0)
        found = predictor.decode_depth(predictor(tap.features, 0, (6,)))
    by_hand = [((f - d).abs() / d)[d > 0].mean().item() for f, d in zip(found, depths)]
    assert rows[1]["abs_rel"] == pytest.approx(sum(by_hand) / 5, rel=0.02)
    relative = score_depth_predictor(unet, DepthPredictor.for_unet(unet, **SMALL), images, scenes(5)[1], timesteps=(0,))
    assert "abs_rel" not in relative[0] and relative[0]["l1"] > 0


def test_masked_l1_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(2, 1, 3, 3, generator=generator) for _ in range(2))
    valid = torch.rand(2, 1, 3, 3, generator=generator) < 0.5
    pairs = [abs(p - t) for p, t, v in zip(predicted.flatten().tolist(), target.flatten().tolist(), valid.flatten()) if v]
    assert masked_l1(predicted, target, valid).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert masked_l1(predicted, target, torch.zeros_like(valid)).item() == 0


def test_bad_input(unet):
    images, depths = scenes(2)
    with pytest.raises(ValueError, match="images have shape"):
        fit_depth_predictor(unet, images[:, :1], depths)
    with pytest.raises(ValueError, match="sample_size 16"):
        fit_depth_predictor(unet, images[..., :8], depths[..., :8])
    with pytest.raises(ValueError, match="depths has shape"):
        fit_depth_predictor(unet, images, depths[:1])
    with pytest.raises(ValueError, match=r"uint8, or floating point in \[-1, 1\]"):
        fit_depth_predictor(unet, images.float(), depths)
    with pytest.raises(ValueError, match="num_steps is 0"):
        fit_depth_predictor(unet, images, depths, num_steps=0)
    with pytest.raises(ValueError, match="both given"):
        fit_depth_predictor(unet, images, depths, predictor=DepthPredictor.for_unet(unet, **SMALL), min_depth=1.0)


def test_a_predictor_that_is_trained_further_keeps_what_it_has_learnt(unet):
    """Statistics of features were measured anew on a few images, and the heads no longer fitted them."""
    images, depths = scenes(32)
    trained = fit_depth_predictor(unet, images, depths, num_steps=20, learning_rate=1e-2, **SMALL).predictor
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    fit_depth_predictor(unet, images[:2], depths[:2], predictor=trained, num_steps=1, learning_rate=0.0)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    made = DepthPredictor.for_unet(unet, **SMALL)
    fit_depth_predictor(unet, images, depths, predictor=made, num_steps=1, learning_rate=0.0)
    assert any((one.mean != 0).any() for one in made.standardizers.values())  # of one that was never trained they are measured
