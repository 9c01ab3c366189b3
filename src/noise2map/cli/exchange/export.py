"""``noise2map export``: a model as graphs for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from noise2map.cli import options


def export(
    model: Annotated[str, typer.Argument(help="A shipped checkpoint, a folder or a hub id.", show_default=False)],
    format: Annotated[
        Literal["onnx", "torch", "aoti"],
        typer.Option(help="ONNX files with a script of NumPy, exported programs of PyTorch, or such compiled ahead of time."),
    ] = "onnx",
    weights: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="Precision in which ONNX weights are stored.")
    ] = "float32",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("exported"),
    overwrite: options.Overwrite = False,
) -> None:
    """Write encoder and decoder step of a model of maps as graphs with open height, width, batch and samples.

    The graphs are held against the model before anything is written, and what was found is printed: of float32 weights more than
    rounding is refused. `evaluate` and `predict` take the folder of an ONNX export as --model.
    """
    import numpy as np
    import transformers

    from noise2map.export.folder import export_model
    from noise2map.inference.loading import load_model
    from noise2map.report.palettes import class_palette
    from noise2map.zoo import label_of

    transformers.utils.logging.disable_progress_bar()
    loaded, processor = load_model(model, "cpu", kinds=("noise2map", "noise2map-bev"))
    names = {int(index): str(name) for index, name in loaded.config.id2label.items()}
    palette = class_palette(names, loaded.config.palette) if getattr(loaded.config, "palette", None) else None
    if palette is None:
        palette = class_palette(names, None) if len(names) > 1 else np.zeros((0, 3), np.uint8)
    export_model(
        loaded, processor, out, format, weights,
        label=label_of(model), palette=palette, overwrite=overwrite, tell=print,
    )  # fmt: skip
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir() if not path.name.startswith('.')))}")
