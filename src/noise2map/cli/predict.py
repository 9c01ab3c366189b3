"""``noise2map predict``: maps for images, folders, tars, tables, addresses and videos, here or on a cluster."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from noise2map.cli import options

EXIT_SOME_FAILED = 1

_VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv")


def _amount(text: Any) -> int:
    from noise2map.runs.memory import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER|TAR|PARQUET|URL|VIDEO...",
            help="Images, folders (sub-folders too), tars, parquet tables, quoted patterns, addresses (https, s3, ...); or videos.",
        ),
    ],
    model: Annotated[str, typer.Option(help="A shipped checkpoint, a folder or a hub id, e.g. freedoom-segmentation-tiny.")],
    out: options.Out = Path("maps"),
    steps: options.Steps = None,
    ensemble: options.Ensemble = None,
    average: options.Average = None,
    sampler: options.MapSampler = None,
    sampling: options.MapSampling = None,
    refine: options.Refine = None,
    refine_share: options.RefineShare = None,
    refine_threshold: options.RefineThreshold = None,
    seed: Annotated[int, typer.Option(help="With the path of an image in the folder, it fixes the image's noise.")] = 0,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="The most images at a time; fewer where memory is short.")] = 8,
    size: options.Size = None,
    interval: Annotated[
        Any, typer.Option(parser=options.check_share, metavar="P", help="Also write where the truth is with this probability.")
    ] = None,
    panels: Annotated[bool, typer.Option(help="Draw image, map and uncertainty side by side for each image.")] = True,
    arrays: Annotated[bool, typer.Option(help="Store depth as floats (npz), too.")] = True,
    memory: Annotated[
        Any, typer.Option(parser=_amount, metavar="2GiB", help="Most memory; an image that does not fit goes in tiles.")
    ] = None,
    tile: Annotated[int | None, typer.Option(min=64, help="Process larger images in tiles of this side, a multiple of 32.")] = None,
    warm_start: Annotated[
        float | None,
        typer.Option(metavar="LEVEL", help="Of a video: begin a frame at this noise level (0 to 1), from the map before."),
    ] = None,
    flow: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of --warm-start: files 000001.npz, ... of flow, along which the map before is moved."),
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where: in this process, or in workers of Ray.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Of Ray: processes; by default one for each GPU or core.")] = None,
    address: Annotated[str | None, typer.Option(help="Of Ray: a running cluster; this machine by default.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Predict class maps or depth, with uncertainty, for images of any size, or for the frames of videos.

    Steps, ensemble, average and sampler are by default what the checkpoint says. Exit code 1: some images failed.
    """
    from noise2map.inference.resuming import plan_images, prediction_request
    from noise2map.inference.sources import find_images
    from noise2map.runs.output_folder import OutputFolder

    chosen = {"num_inference_steps": steps, "ensemble_size": ensemble, "average": average, "sampler": sampler}
    chosen |= {"sampling": sampling, "seed": seed}
    options.check_refinement(refine, refine_share, refine_threshold)
    _check_engine(engine, workers, address, memory, device)
    if refine is not None:  # left out otherwise: folders of earlier runs are gone on with
        chosen |= {"refine": refine, "refine_share": refine_share}
    if refine_threshold is not None:
        chosen["refine_threshold"] = refine_threshold
    videos = _videos(sources, warm_start, interval, flow)
    moved = _flow(flow, sources)
    if videos and engine == "ray":
        raise typer.BadParameter("it is for images, got videos", param_hint="--engine")
    chosen["size"] = tuple(size) if isinstance(size, tuple) else size
    found = find_images(sources, leave_out=out)
    if interval is not None:
        chosen["interval"] = interval
    bound = {name: value for name, value in (("memory", memory), ("tile", tile)) if value is not None}
    level = {} if warm_start is None else {"warm_start": warm_start}
    request = prediction_request(
        model, dtype=dtype, panels=panels, arrays=arrays, **chosen, **bound, **level, **({"flow": moved.checksum} if moved else {})
    )
    with OutputFolder(out, overwrite=overwrite) as folder:
        if folder.recall(request):
            plan = plan_images(found, folder)
            if not plan.images and not plan.failed:  # nothing to load a model for
                _tell(out, 0, plan.done, {}, found.skipped, model)
                return
        import transformers  # after the checks that need nothing heavy

        from noise2map.inference.folder import predict_folder
        from noise2map.inference.loading import load_model, pick_device, pick_dtype
        from noise2map.inference.predictor import Predictor
        from noise2map.models.decoding import PredictionOptions

        transformers.utils.logging.disable_progress_bar()
        here = pick_device("cpu" if engine == "ray" else device)
        predictor = Predictor(*load_model(model, here, pick_dtype(dtype)), **bound)
        choices: dict[str, Any] = {"model_name": model, "batch_size": batch_size}
        try:
            if videos:
                from noise2map.video import predict_video

                choices |= {"warm_start": warm_start, "flow": moved}
                report = predict_video(found, folder, predictor, PredictionOptions(**chosen), **choices)
            else:
                choices |= {"panels": panels, "arrays": arrays}
                if engine == "ray":
                    from noise2map.cluster import ModelSource, RayEngine

                    source = ModelSource(model, device, dtype, tile)
                    choices["engine"] = RayEngine(source, workers=workers, address=address)
                report = predict_folder(found, folder, predictor, PredictionOptions(**chosen), **choices)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise MemoryError("out of memory; use a smaller --batch-size, --size or --ensemble") from error
    _tell(out, len(report.written), report.skipped, report.failed, report.left_out, f"{predictor.task}, {model}")
    if report.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _check_engine(engine: str, workers: int | None, address: str | None, memory: int | None, device: str) -> None:
    """Refuses what belongs to the other engine, before anything is loaded."""
    if engine == "local":
        for name, value in (("--workers", workers), ("--address", address)):
            if value is not None:
                raise typer.BadParameter("it needs --engine ray", param_hint=name)
        return
    if memory is not None:
        raise typer.BadParameter("it bounds one process; with --engine ray expected --tile", param_hint="--memory")
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"with --engine ray expected auto, cpu or cuda, got {device!r}", param_hint="--device")
    from noise2map.cluster.engine import import_ray

    import_ray()


def _videos(sources: list[str], warm_start: float | None, interval: float | None, flow: Path | None) -> bool:
    """Whether it is videos that are given; what cannot be done with them is refused."""
    names = [source for source in sources if source.lower().endswith(_VIDEOS)]
    if flow is not None and warm_start is None:
        raise typer.BadParameter("it needs --warm-start, whose map it moves", param_hint="--flow")
    if flow is not None and len(names) > 1:
        raise typer.BadParameter(f"it is that of one video, got {len(names)}", param_hint="--flow")
    if not names:
        if warm_start is not None:
            raise typer.BadParameter(f"it is for videos ({', '.join(_VIDEOS)}), got {sources[0]!r}", param_hint="--warm-start")
        return False
    if len(names) < len(sources):
        other = next(source for source in sources if source not in names)
        raise typer.BadParameter(f"expected videos alone or no videos, got {names[0]!r} and {other!r}")
    for name in names:
        if "://" in name:
            raise typer.BadParameter(f"videos are read from files, got the address {name!r}")
    if interval is not None:
        raise typer.BadParameter("it is not drawn into videos", param_hint="--interval")
    from noise2map.models.denoising.run import check_warm_level
    from noise2map.video.reading import VideoReader, import_av

    import_av()
    if warm_start is not None:
        check_warm_level(warm_start)
    if len(names) == 1:
        VideoReader(names[0])  # of several, those that can be read are done
    return True


def _flow(folder: Path | None, sources: list[str]) -> Any:
    """Flow of the video, whose size it has; None where none is given."""
    if folder is None:
        return None
    from noise2map.video import FlowFolder, VideoReader

    flow = FlowFolder(folder)
    flow.check(VideoReader(sources[0]).size)
    return flow


def _tell(out: Path, written: int, done: list[str], failed: dict[str, str], left_out: dict[str, str], model: str) -> None:
    from noise2map.inference.sources import describe_skipped
    from noise2map.runs.words import printable

    counts = [f"{written} predicted"]
    counts += [f"{len(done)} done before"] * bool(done)
    counts += [f"{len(failed)} failed"] * bool(failed)
    counts += [f"{len(left_out)} skipped"] * bool(left_out)
    print(f"{printable(str(out))}: {', '.join(counts)} ({model})")
    if left_out:
        print(f"skipped: {describe_skipped(left_out)}")
    if failed:
        typer.echo(f"noise2map: failed: {', '.join(failed)}", err=True)
