"""``noise2map predict``: maps for an image or a folder of images."""

import sys
from pathlib import Path

import typer

EXIT_SOME_FAILED = 1


def predict(
    source: Path = typer.Argument(..., metavar="IMAGE|FOLDER", help="An image, or a folder of images (sub-folders too)."),
    model: str = typer.Option(..., help="A shipped checkpoint, a folder or a hub id, e.g. freedoom-segmentation-tiny."),
    out: Path = typer.Option(..., help="Folder to write to; an unfinished run is gone on with."),
    steps: str | None = typer.Option(None, help="Denoising steps, or auto: until the map stops changing."),
    ensemble: int | None = typer.Option(None, help="Noise samples per image."),
    average: str | None = typer.Option(None, help="last (step) or steps (their mean)."),
    sampler: str | None = typer.Option(None, help="ddim or ddpm."),
    seed: int = typer.Option(0, help="With the path of an image in the folder, it fixes the image's noise."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:N or mps."),
    dtype: str = typer.Option("float32", help="float32, bfloat16 or float16."),
    batch_size: int = typer.Option(8, help="The most images at a time; fewer where memory is short."),
    size: str | None = typer.Option(None, help="WIDTHxHEIGHT to process at, or native; else as the checkpoint says."),
    panels: bool = typer.Option(True, help="Draw a picture of image, map and uncertainty for each image."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace maps made with other settings."),
) -> None:
    """Predict class maps or depth, with uncertainty, for an image or a folder of images of any size.

    Steps, ensemble, average and sampler are by default what the checkpoint says. Exit code 1: some images failed.
    """
    choices = {"num_inference_steps": parse_steps(steps), "size": parse_size(size)}
    if not source.exists():
        raise FileNotFoundError(f"there is no image or folder {str(source)!r}")
    import transformers  # after the checks that need nothing heavy

    from noise2map.inference.folder import find_images, predict_folder
    from noise2map.inference.loading import pick_device, pick_dtype
    from noise2map.inference.predictor import Predictor
    from noise2map.models.decoding import Dials
    from noise2map.runs.files import check_writable

    transformers.utils.logging.disable_progress_bar()
    dials = Dials(ensemble_size=ensemble, average=average, sampler=sampler, seed=seed, **choices)
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    find_images(source, leave_out=out)
    check_writable(out)
    predictor = Predictor.from_pretrained(model, pick_device(device), pick_dtype(dtype))
    try:
        report = predict_folder(
            source,
            out,
            predictor,
            dials,
            model_name=model,
            batch_size=batch_size,
            overwrite=overwrite,
            panels=panels,
        )
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise MemoryError("out of memory; use a smaller --batch-size, --size or --ensemble") from error
    counts = [f"{len(report.written)} predicted"]
    counts += [f"{len(report.skipped)} done before"] * bool(report.skipped)
    counts += [f"{len(report.failed)} failed"] * bool(report.failed)
    print(f"{out}: {', '.join(counts)} ({predictor.task}, {model})")
    if report.failed:
        print(f"noise2map: failed: {', '.join(report.failed)}", file=sys.stderr)
        raise typer.Exit(EXIT_SOME_FAILED)


def parse_steps(text: str | None) -> int | str | None:
    """``"3"`` -> 3; ``"auto"`` and None as they are.

    Raises:
        ValueError: If it is something else.
    """
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--steps must be a whole number of at least 1, or auto, got {text!r}")
    return int(text)


def parse_size(text: str | None) -> tuple[int, int] | str | None:
    """``"640x480"`` -> (640, 480); ``"native"`` and None as they are.

    Raises:
        ValueError: If it is something else.
    """
    if text is None or text == "native":
        return text
    width, times, height = text.lower().partition("x")
    if not (times and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size must be WIDTHxHEIGHT in pixels, such as 640x480, or native, got {text!r}")
    return int(width), int(height)
