import adm_golden as golden
import pytest
import torch
from diffusers import UNet2DModel
from tiny_guidance import tiny_unet
from torch.nn import functional

from noise2map.convert import load_adm_unet
from noise2map.convert.adm_flags import adm_architecture
from noise2map.guidance import UNetFeatureTap, decoder_blocks


def hooks(unet) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules())


@pytest.mark.golden
def test_golden_activations_and_gradients():
    unet = load_adm_unet(golden.weights("adm_tiny"), **golden.flags("adm_tiny"))
    numbers = golden.numbers()
    x = golden.X().requires_grad_(True)
    with UNetFeatureTap(unet, range(12)) as tap:
        unet(x, torch.tensor(golden.TIMESTEPS))
    assert list(tap.features) == list(range(12))
    for k, feature in tap.features.items():
        torch.testing.assert_close(golden.sample(feature, spread=False), numbers[f"block.{k}"], atol=5e-5, rtol=0)
    collected = [functional.interpolate(tap.features[k], (64, 64), mode="bilinear").flatten(2) for k in (2, 4, 5, 6, 7)]
    torch.testing.assert_close(torch.cat(collected, 1)[:, :, numbers["collected.pixels"]], numbers["collected"], atol=5e-5, rtol=0)
    for k in (2, 4, 5, 6, 7):
        product = (tap.features[k] * golden.normal(1000 + k, *tap.features[k].shape)).sum()
        (gradient,) = torch.autograd.grad(product, x, retain_graph=True)
        torch.testing.assert_close(golden.sample(gradient), numbers[f"grad_x.{k}"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["adm_tiny", "adm_tiny_plain", "lsun256"])
def test_names_of_published_models(name):
    recorded = golden.keys()[name]
    with torch.device("meta"):
        unet = UNet2DModel(**recorded["config"])
    blocks = decoder_blocks(unet)
    assert {str(k): block.name for k, block in blocks.items()} == recorded["taps"]
    if name == "lsun256":
        assert {str(k): block.channels for k, block in blocks.items()} == {
            k: chw[0] for k, chw in recorded["output_blocks_CHW"].items()
        }
        assert unet.config.block_out_channels == list(adm_architecture(recorded["flags"]).widths)


def test_each_block_feeds_the_next():
    # Independent of names: the output of block k is the first half of what the residual block of block k + 1 reads.
    unet = tiny_unet()
    blocks = decoder_blocks(unet)
    resnets = [resnet for up in unet.up_blocks for resnet in up.resnets]
    read = {}
    handles = [
        resnet.register_forward_pre_hook(lambda module, args, k=k: read.__setitem__(k, args[0])) for k, resnet in enumerate(resnets)
    ]
    with torch.no_grad(), UNetFeatureTap(unet, blocks) as tap:
        unet(torch.randn(2, 3, 16, 16), 10)
    for handle in handles:
        handle.remove()
    for k in range(8):
        feature = tap.features[k]
        assert feature.shape[1] == blocks[k].channels
        assert torch.equal(read[k + 1][:, : feature.shape[1]], feature)


def test_hooks_are_removed_also_on_error():
    unet = tiny_unet()
    with pytest.raises(RuntimeError), UNetFeatureTap(unet, grad_until=6):
        assert hooks(unet) == 8
        unet(torch.randn(1, 4, 16, 16), 0)
    assert hooks(unet) == 0
    assert torch.is_grad_enabled()
    with UNetFeatureTap(unet, [8]) as tap, torch.no_grad():
        with pytest.raises(RuntimeError, match="open already"):
            tap.__enter__()
        unet(torch.randn(1, 3, 16, 16), 0)
    assert hooks(unet) == 0 and list(tap.features) == [8]


def test_error_inside_the_unet_restores_gradients():
    unet = tiny_unet()
    handle = unet.conv_out.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("stop")))
    with UNetFeatureTap(unet, [6], grad_until=6):
        with pytest.raises(KeyError):
            unet(torch.randn(1, 3, 16, 16), 0)
        assert torch.is_grad_enabled()
    handle.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_graph_ends_after_the_last_block_needed(checkpointing):
    unet = tiny_unet().requires_grad_(False)
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    with UNetFeatureTap(unet) as tap:
        output = unet(x, 10).sample
    assert output.requires_grad
    (expected,) = torch.autograd.grad(tap.features[6].square().sum(), x)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    with UNetFeatureTap(unet, grad_until=6) as tap:
        short = unet(x, 10).sample
        before = dict(tap.features)
        (gradient,) = torch.autograd.grad(tap.features[6].square().sum(), x)
        assert all(tap.features[k] is before[k] for k in before), "recomputation must not replace features"
    assert torch.equal(short, output) and not short.requires_grad and not tap.features[7].requires_grad
    assert torch.is_grad_enabled()
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_missing_blocks_and_foreign_unets():
    unet = tiny_unet()
    with pytest.raises(ValueError, match=r"decoder blocks 0..8; it lacks the requested \[9, 12\]"):
        UNetFeatureTap(unet, (2, 9, 12))
    with pytest.raises(ValueError, match="at least one, each once"):
        UNetFeatureTap(unet, (2, 2))
    with pytest.raises(ValueError, match="expected a diffusers UNet2DModel"):
        UNetFeatureTap(torch.nn.Linear(1, 1))
    skip = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=("SkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "SkipUpBlock2D"),
        norm_num_groups=4,
    )
    with pytest.raises(ValueError, match="SkipUpBlock2D"):
        UNetFeatureTap(skip, [0])


def test_google_ddpm_256_unets():
    # google/ddpm-{bedroom,church,cat}-256: plain blocks, asymmetric padding, one head, no attention at block 6.
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=256,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
        )
        assert sum(parameter.numel() for parameter in unet.parameters()) == 113_673_219
        with UNetFeatureTap(unet) as tap:
            unet(torch.empty(1, 3, 256, 256), torch.zeros(1))
    assert {k: tuple(feature.shape[1:]) for k, feature in tap.features.items()} == {
        2: (512, 16, 16),
        4: (512, 16, 16),
        5: (512, 32, 32),
        6: (256, 32, 32),
        7: (256, 32, 32),
    }
    assert {k: block.channels for k, block in decoder_blocks(unet).items() if k in tap.features} == {
        k: feature.shape[1] for k, feature in tap.features.items()
    }
