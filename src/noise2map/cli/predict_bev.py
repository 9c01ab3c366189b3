"""``noise2map predict-bev``: bird's-eye-view maps of samples of a dataset."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from noise2map.cli import options


def predict_bev(
    samples: Annotated[list[str], typer.Argument(metavar="SAMPLE...", help="Tokens of samples, or their numbers in the split.")],
    model: Annotated[str, typer.Option(help="Shipped name, folder of a checkpoint, or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; each sample gets a folder of its own.")] = Path("maps-bev"),
    root: Annotated[Path | None, typer.Option(help="Folder of the data. [default: the four shipped samples]")] = None,
    dataset: Annotated[str, typer.Option(help="freedoom-surround or nuscenes.")] = "freedoom-surround",
    split: Annotated[str | None, typer.Option(help="Split of the data. [default: the one that scores are reported for]")] = None,
    steps: options.Steps = None,
    ensemble: options.Ensemble = None,
    average: options.Average = None,
    sampler: options.MapSampler = None,
    sampling: options.MapSampling = None,
    seed: Annotated[int, typer.Option(help="With a sample's token it fixes the sample's noise.")] = 0,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability from which a layer counts as present. [default: the checkpoint's of each layer, or 0.5]"),
    ] = None,
    cells: Annotated[
        Literal["visible", "all"], typer.Option(help="Of freedoom-surround: also show and score cells that nobody can see.")
    ] = "visible",
    guesses: Annotated[
        int, typer.Option(min=0, max=64, help="Also draw this many whole maps that may be true, by smooth noise.")
    ] = 0,
    animation: Annotated[Literal["gif", "webp", "none"], typer.Option(help="Animation of the denoising from above.")] = "gif",
    animation_steps: Annotated[int, typer.Option(min=2, max=options.MAX_STEPS, help="Its denoising steps.")] = 10,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    overwrite: options.Overwrite = False,
) -> None:
    """Predict map layers from above with uncertainty: views, layers, truth, errors as a panel, and the denoising as animation.

    Steps, ensemble, average and sampler are by default what the checkpoint says.
    """
    import transformers  # after the checks that need nothing heavy

    from noise2map.inference.bev import BevPredictionOptions, predict_bev
    from noise2map.models.decoding import DecodingOptions

    transformers.utils.logging.disable_progress_bar()
    decoding = DecodingOptions(
        num_inference_steps=steps, ensemble_size=ensemble, average=average, sampler=sampler, sampling=sampling, seed=seed
    )
    predict_bev(
        BevPredictionOptions(
            samples=samples,
            model=model,
            out=out,
            dataset=dataset,
            root=root,
            split=split,
            decoding=decoding,
            threshold=threshold,
            cells=cells,
            guesses=guesses,
            animation=animation,
            animation_steps=animation_steps,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
        )
    )
