import math

import adm_golden as golden
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import save_file

from noise2map.convert import LSUN_256_FLAGS, adm_scheduler, load_adm_unet
from noise2map.convert.adm_flags import adm_architecture, resolve_flags
from noise2map.convert.adm_keys import adm_layer_names

TINY = {
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "16",
    "num_head_channels": 32,
}


@pytest.fixture(scope="module")
def unet():
    return load_adm_unet(golden.weights("adm_tiny"), **golden.flags("adm_tiny"))


def official(unet: UNet2DModel, new_order: bool, head_dim: int, **flags) -> dict[str, torch.Tensor]:
    """State dict in ADM's names and layouts, written from a diffusers U-Net by the inverse rules."""
    ours = unet.state_dict()
    out = {}
    for layer, name in adm_layer_names(adm_architecture(flags)).items():
        for leaf in ("weight", "bias"):
            if name.endswith(".qkv"):
                parts = [ours[f"{name[:-3]}{part}.{leaf}"] for part in ("to_q", "to_k", "to_v")]
                if new_order:
                    rows = torch.cat(parts)
                else:
                    heads = parts[0].shape[0] // head_dim
                    rows = torch.cat([part[h * head_dim : (h + 1) * head_dim] for h in range(heads) for part in parts])
                out[f"{layer}.{leaf}"] = rows[:, :, None] if leaf == "weight" else rows
            elif f"{name}.{leaf}" in ours:
                value = ours[f"{name}.{leaf}"]
                out[f"{layer}.{leaf}"] = value[:, :, None] if layer.endswith("proj_out") and leaf == "weight" else value
    return out


@pytest.mark.golden
def test_golden_output_and_gradient(unet):
    x = golden.X().requires_grad_(True)
    output = unet(x, torch.tensor(golden.TIMESTEPS)).sample
    torch.testing.assert_close(golden.sample(output), golden.numbers()["output"], atol=5e-5, rtol=0)
    (gradient,) = torch.autograd.grad((output * golden.normal(2000, 2, 6, 64, 64)).sum(), x)
    torch.testing.assert_close(golden.sample(gradient), golden.numbers()["grad_x.output"], atol=2e-4, rtol=0)
    assert sum(p.numel() for p in unet.parameters()) == golden.keys()["adm_tiny"]["n_params"]


@pytest.mark.golden
def test_survives_save_and_load(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    again = UNet2DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        output = again(golden.X(), torch.tensor(golden.TIMESTEPS)).sample
    torch.testing.assert_close(golden.sample(output), golden.numbers()["output"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["adm_tiny", "lsun256"])
def test_keys_and_configuration_of_published_models(name):
    recorded = golden.keys()[name]
    architecture = adm_architecture(recorded["flags"])
    config = architecture.unet_config()
    for field, value in recorded["config"].items():
        if field != "add_attention":
            assert config[field] == (tuple(value) if isinstance(value, list) else value), field
    names = adm_layer_names(architecture)
    for key, (_, ours) in recorded["keys"].items():
        layer, _, leaf = key.rpartition(".")
        name = names[layer]
        parts = [name.replace(".qkv", f".{part}") for part in ("to_q", "to_k", "to_v")] if name.endswith("qkv") else [name]
        assert [f"{part}.{leaf}" for part in parts] == ours


def test_lsun_flags_are_the_recorded_ones():
    assert adm_architecture(LSUN_256_FLAGS) == adm_architecture(golden.flags("lsun256"))


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("updown", [False, True])
def test_round_trip_of_both_attention_orders(new_order, updown):
    flags = {**TINY, "num_head_channels": 16, "resblock_updown": updown, "use_new_attention_order": new_order, "class_cond": True}
    torch.manual_seed(0)
    unet = UNet2DModel(**adm_architecture(flags).unet_config()).eval()
    state = official(unet, new_order, 16, **flags)
    x, labels = torch.randn(1, 3, 32, 32), torch.tensor([7])
    with torch.no_grad():
        again = load_adm_unet(state, **flags)
        assert torch.equal(again(x, 5, labels).sample, unet(x, 5, labels).sample)
        other = load_adm_unet(state, **{**flags, "use_new_attention_order": not new_order})
        assert not torch.allclose(other(x, 5, labels).sample, unet(x, 5, labels).sample, atol=1e-5)
    assert set(again.conversion_report.used) == set(state)
    assert not again.training


@pytest.mark.parametrize("heads", [1, 2])
def test_number_of_heads_is_exact_where_one_width_attends(heads):
    flags = {**TINY, "num_head_channels": -1, "num_heads": heads}
    unet = UNet2DModel(**adm_architecture(flags).unet_config())
    widths = {module.heads for name, module in unet.named_modules() if name.endswith(("attentions.0", "attentions.1"))}
    assert widths == {heads}


def test_reads_files(tmp_path):
    unet = UNet2DModel(**adm_architecture(TINY).unet_config())
    state = {key: value.contiguous() for key, value in official(unet, False, 32, **TINY).items()}
    torch.save(state, tmp_path / "model.pt")
    save_file(state, tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        loaded = load_adm_unet(tmp_path / name, **TINY)
        assert all(torch.equal(a, b) for a, b in zip(unet.state_dict().values(), loaded.state_dict().values()))
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_adm_unet(tmp_path / "nothing.pt", **TINY)


def test_refuses_what_would_be_silently_wrong():
    with pytest.raises(ValueError, match=r"attention_head_dim for all levels"):
        load_adm_unet(golden.weights("adm_tiny_plain"), **golden.flags("adm_tiny_plain"))
    with pytest.raises(ValueError, match="time embedding has 256 channels"):
        load_adm_unet({}, image_size=512, num_channels=256, num_head_channels=64)
    with pytest.raises(ValueError, match="num_heads_upsample"):
        load_adm_unet({}, **{**TINY, "num_head_channels": -1, "num_heads": 1, "num_heads_upsample": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_channel": 32}, "did you mean 'num_channels'"),
        ({"learn_sigma": False}, "learn_sigma is False, but"),
        ({"class_cond": True}, "class_cond is True, but"),
        ({"num_channels": 64}, "num_channels is 64, but"),
        ({"resblock_updown": False}, "resblock_updown is False, but"),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm is False, but"),
        ({"num_res_blocks": 3}, "num_res_blocks"),
        ({"attention_resolutions": "16,8"}, "attention_resolutions"),
        ({"attention_resolutions": "a"}, "whole numbers"),
        ({"channel_mult": "1,2,3,5"}, "channel_mult"),
        ({"channel_mult": "inf,1"}, "channel_mult is 'inf,1'; expected positive numbers"),
        ({"channel_mult": []}, r"channel_mult is \[\]; expected positive numbers"),
        ({"num_head_channels": 10}, "divisor"),
        ({"image_size": 100, "channel_mult": ""}, "no default channel_mult"),
    ],
)
def test_flags_that_contradict_the_weights(change, message):
    with pytest.raises(ValueError, match=message):
        load_adm_unet(golden.weights("adm_tiny"), **{**golden.flags("adm_tiny"), **change})


def test_refuses_super_resolution_and_foreign_checkpoints():
    state = dict(golden.weights("adm_tiny"))
    state["input_blocks.0.0.weight"] = torch.zeros(32, 6, 3, 3)
    with pytest.raises(ValueError, match="super-resolution"):
        load_adm_unet(state, **golden.flags("adm_tiny"))
    with pytest.raises(ValueError, match="expected the state dict of an ADM"):
        load_adm_unet({"a": torch.zeros(1)}, **golden.flags("adm_tiny"))


def test_scheduler_has_the_process_of_the_flags():
    scheduler = adm_scheduler(**LSUN_256_FLAGS)
    assert scheduler.config.variance_type == "learned_range"
    assert adm_scheduler().config.variance_type == "fixed_large"
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(25)
    assert torch.equal(ddim.timesteps.flip(0), golden.numbers()["timesteps.ddim25"])
    # Nichol & Dhariwal (2021), Eq. 17.
    cosine = adm_scheduler(noise_schedule="cosine")
    level = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(501)]
    assert cosine.alphas_cumprod[499].item() == pytest.approx(level[500] / level[0], rel=1e-4)
    with pytest.raises(ValueError, match="noise_schedule"):
        adm_scheduler(noise_schedule="cubic")
    with pytest.raises(ValueError, match="diffusion_steps is 19; expected at least 20 of the linear schedule"):
        adm_scheduler(diffusion_steps=19)
    assert adm_scheduler(diffusion_steps=20).betas.max() <= 1 and adm_scheduler(diffusion_steps=5, noise_schedule="cosine")


def test_flags_are_taken_in_the_types_of_their_defaults():
    words = {"image_size": "32", "learn_sigma": "False", "class_cond": "true", "dropout": "0.1", "num_channels": 32.0}
    values = resolve_flags(words)
    assert {name: values[name] for name in words} == {
        "image_size": 32, "learn_sigma": False, "class_cond": True, "dropout": 0.1, "num_channels": 32,
    }  # fmt: skip
    assert not adm_architecture({**TINY, "learn_sigma": "False"}).learn_sigma


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ({"image_size": "abc"}, "image_size is of type int, got 'abc'"),
        ({"image_size": True}, "image_size is of type int, got True"),
        ({"num_channels": 32.5}, "num_channels is of type int, got 32.5"),
        ({"learn_sigma": 2}, "learn_sigma is True or False, got 2"),
        ({"diffusion_steps": 0}, "diffusion_steps is 0; expected at least 1"),
        ({"num_res_blocks": -1}, "num_res_blocks is -1; expected at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_flags_that_cannot_be_are_refused(flag, said):
    with pytest.raises(ValueError, match=said):
        resolve_flags({**TINY, **flag})


def test_a_folder_is_told_apart_from_a_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        load_adm_unet(tmp_path, **TINY)
