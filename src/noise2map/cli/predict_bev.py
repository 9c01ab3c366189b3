"""``noise2map predict-bev``: bird's-eye-view maps of samples of a data set."""

from pathlib import Path
from typing import Annotated

import typer


def predict_bev(
    samples: Annotated[list[str], typer.Argument(metavar="SAMPLE...", help="Tokens of samples, or their numbers in the split.")],
    model: Annotated[str, typer.Option(help="Shipped name, folder of a checkpoint, or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; each sample gets a folder of its own.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the data. [default: the four shipped samples]")] = None,
    dataset: Annotated[str, typer.Option(help="freedoom-surround or nuscenes.")] = "freedoom-surround",
    split: Annotated[str | None, typer.Option(help="Split of the data. [default: the one that scores are reported for]")] = None,
    steps: Annotated[str | None, typer.Option(help="Denoising steps, or auto: until the map stops changing.")] = None,
    ensemble: Annotated[int | None, typer.Option(help="Noise samples.")] = None,
    average: Annotated[str | None, typer.Option(help="last (step) or steps (their mean).")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim or ddpm.")] = None,
    seed: Annotated[int, typer.Option(help="With a sample's token it fixes the sample's noise.")] = 0,
    threshold: Annotated[float, typer.Option(help="Probability from which a layer counts as present.")] = 0.5,
    animation: Annotated[str, typer.Option(help="Top-down animation of the denoising: gif, webp or none.")] = "gif",
    animation_steps: Annotated[int, typer.Option(help="Its denoising steps.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Predict map layers from above with uncertainty: views, layers, truth, errors as a panel, and the denoising as a film.

    Steps, ensemble, average and sampler are by default what the checkpoint says.
    """
    from noise2map.cli.predict import parse_steps

    number = parse_steps(steps)
    import transformers  # after the checks that need nothing heavy

    from noise2map.inference.bev import BevPredictionJob, predict_bev
    from noise2map.models.decoding import Dials

    transformers.utils.logging.disable_progress_bar()
    dials = Dials(num_inference_steps=number, ensemble_size=ensemble, average=average, sampler=sampler, seed=seed)
    job = BevPredictionJob(samples, model, out, dataset, root, split, dials, threshold, animation, animation_steps, device, dtype)
    predict_bev(job, print)
