"""A generator of twice the side that begins with what a trained one knows: the trained U-Net becomes the inside of a new one.

A finest level is put around the network, before its first and after its last block; every block that the two share starts
with the trained weights, the finest level at random. Layouts, which are settled at 8 and 16 px, need not be learnt again. The
result is the folder of a diffusers pipeline, the ``model.init_from`` of a recipe.

    python benchmarks/grow_generator.py --from freedoom-generator-64 --out runs/grown-128
    noise2map train generator freedoom-generator-128 --set model.init_from=runs/grown-128
"""

import argparse
from pathlib import Path

import torch
from diffusers import DDPMPipeline, UNet2DModel

from noise2map.generation.loading import load_generator


def grown_unet(unet: UNet2DModel) -> tuple[UNet2DModel, int]:
    """A U-Net of twice the side with a finest level as wide as ``unet``'s, and how many of its tensors are trained ones."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    widths = unet.config.block_out_channels
    config |= {
        "sample_size": 2 * unet.config.sample_size,
        "block_out_channels": (widths[0], *widths),
        "down_block_types": ("DownBlock2D", *unet.config.down_block_types),
        "up_block_types": (*unet.config.up_block_types, "UpBlock2D"),
    }
    grown = UNet2DModel(**config)
    trained = {_name_inside(name): tensor for name, tensor in unet.state_dict().items()}
    fresh = grown.state_dict()
    shared = {name: tensor for name, tensor in trained.items() if name in fresh and fresh[name].shape == tensor.shape}
    grown.load_state_dict({**fresh, **shared})
    return grown, len(shared)


def _name_inside(name: str) -> str:
    """What a tensor is called in the grown network: its encoder has a level before, its decoder one behind."""
    parts = name.split(".")
    if parts[0] == "down_blocks":
        parts[1] = str(int(parts[1]) + 1)
    return ".".join(parts)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, help="a trained generator: folder, hub id or shipped name")
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="of the new level")
    options = parser.parse_args()
    if Path(options.out).exists():
        parser.error(f"--out {options.out} is there already; expected a new folder")
    pipe = load_generator(options.source)
    torch.manual_seed(options.seed)
    grown, shared = grown_unet(pipe.unet.float())
    DDPMPipeline(grown, pipe.scheduler).save_pretrained(options.out)
    print(f"{options.out}: {grown.config.sample_size} px, {shared} of {len(grown.state_dict())} tensors are trained ones")


if __name__ == "__main__":
    main()
