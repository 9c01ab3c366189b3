"""The published DDP segmentation model, from its authors' unmodified source, for a CPU without compiled operators.

Runs in an environment of its own (see compare.py) and knows nothing of this library. Packages that the source imports and
that inference does not use are replaced by empty stand-ins; attention is mmcv's ``grid_sample`` version, which is what a CPU gets.
"""

import contextlib
import importlib.machinery
import io
import sys
import types
import warnings
from pathlib import Path

import torch

CONFIG = "configs/ade/ddp_swin_t_2x8_512x512_160k_ade20k.py"
SIZES = ("512x512", "1024x2048")


class _StandIn(types.ModuleType):
    """A module whose functions can be imported and must not be called."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_args, **_kwargs):
            raise NotImplementedError(f"{self.__name__}.{name} is a stand-in")

        return missing


def _stand_in(name: str, **attributes: object) -> _StandIn:
    module = _StandIn(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    for attribute, value in attributes.items():
        setattr(module, attribute, value)
    sys.modules[name] = module
    return module


def build(source: Path) -> torch.nn.Module:
    """The ADE20K Swin-T model with fresh weights; ``source`` is the folder ``segmentation`` of the authors' repository."""
    warnings.filterwarnings("ignore")
    _stand_in("mmcv._ext")
    vision = _stand_in("torchvision", __version__="0.28.0")
    for part in ("models", "ops", "transforms"):
        setattr(vision, part, _stand_in(f"torchvision.{part}"))
    sys.path.insert(0, str(source))
    from mmcv import Config
    from mmseg.models import build_segmentor

    config = Config.fromfile(str(source / CONFIG))
    config.model.backbone.init_cfg = None
    for head in (config.model.auxiliary_head, config.model.decode_head):
        head.norm_cfg = {"type": "BN", "requires_grad": True}  # SyncBN wants a process group; in evaluation the two are one
    config.model.train_cfg = None
    with contextlib.redirect_stdout(io.StringIO()):
        return build_segmentor(config.model)


def image_metas(height: int, width: int) -> list[dict[str, object]]:
    """What the public code wants to know of an image."""
    shape = (height, width, 3)
    return [
        {
            "img_shape": shape,
            "ori_shape": shape,
            "pad_shape": shape,
            "scale_factor": 1.0,
            "flip": False,
            "filename": "",
            "ori_filename": "",
        }
    ]


def save_weights(source: Path, work: Path) -> None:
    """Weights of seed 0 as the authors initialise them, and one image of each size."""
    torch.manual_seed(0)
    model = build(source)
    with contextlib.redirect_stdout(io.StringIO()):
        model.init_weights()
    torch.save({"state_dict": model.eval().state_dict(), "meta": {}}, work / "weights.pth")
    generator = torch.Generator().manual_seed(1)
    for size in SIZES:
        height, width = map(int, size.split("x"))
        torch.save(torch.randn(1, 3, height, width, generator=generator), work / f"image_{size}.pt")


if __name__ == "__main__":
    save_weights(Path(sys.argv[1]), Path(sys.argv[2]))
