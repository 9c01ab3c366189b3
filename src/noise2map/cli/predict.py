"""``noise2map predict``: maps for images, folders, tars, tables, addresses and videos, here or on a cluster."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from noise2map.cli import options
from noise2map.cli.launch import explain_lack_of_memory, hide_progress_of_files

EXIT_SOME_FAILED = 1

_VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv")


def _amount(text: Any) -> int:
    from noise2map.runs.memory import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE|FOLDER|TAR|PARQUET|URL|VIDEO...",
        help="Images, folders (sub-folders too), tars, parquet tables, quoted patterns, addresses (https, s3, ...); or videos.",
    ),
]
Model = Annotated[str, typer.Option(help="A shipped checkpoint, a folder or a hub id, e.g. freedoom-segmentation-tiny.")]
Seed = Annotated[int, typer.Option(help="With the path of an image in the folder, it fixes the image's noise.")]
BatchSize = Annotated[int, typer.Option(min=1, help="The most images at a time; fewer where memory is short.")]
Interval = Annotated[
    Any, typer.Option(parser=options.check_share, metavar="P", help="Also write where the truth is with this probability.")
]
Panels = Annotated[bool, typer.Option(help="Draw image, map and uncertainty side by side for each image.")]
Arrays = Annotated[bool, typer.Option(help="Store depth as floats (npz), too.")]
Memory = Annotated[Any, typer.Option(parser=_amount, metavar="2GiB", help="Most memory; an image that does not fit goes in tiles.")]
Tile = Annotated[int | None, typer.Option(min=64, help="Process larger images in tiles of this side, a multiple of 32.")]
WarmStart = Annotated[
    float | None,
    typer.Option(metavar="LEVEL", help="Of a video: begin a frame at this noise level (0 to 1), from the map before."),
]
Flow = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Of --warm-start: files 000001.npz, ... of flow, along which the map before is moved."),
]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="Where: in this process, or in workers of Ray.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Of Ray: processes; by default one for each GPU or core.")]
Address = Annotated[str | None, typer.Option(help="Of Ray: a running cluster; this machine by default.")]


def predict(
    sources: Sources,
    model: Model,
    out: options.Out = Path("maps"),
    steps: options.Steps = None,
    ensemble: options.Ensemble = None,
    average: options.Average = None,
    sampler: options.MapSampler = None,
    sampling: options.MapSampling = None,
    refine: options.Refine = None,
    refine_share: options.RefineShare = None,
    refine_threshold: options.RefineThreshold = None,
    seed: Seed = 0,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    batch_size: BatchSize = 8,
    size: options.Size = None,
    interval: Interval = None,
    panels: Panels = True,
    arrays: Arrays = True,
    memory: Memory = None,
    tile: Tile = None,
    warm_start: WarmStart = None,
    flow: Flow = None,
    engine: Engine = "local",
    workers: Workers = None,
    address: Address = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Predict class maps or depth, with uncertainty, for images of any size, or for the frames of videos.

    Steps, ensemble, average and sampler are by default what the checkpoint says. Exit code 1: some images failed.
    """
    from noise2map.inference.resuming import plan_images, prediction_request
    from noise2map.inference.sources import find_images
    from noise2map.runs.output_folder import OutputFolder

    options.check_refinement(refine, refine_share, refine_threshold)
    elsewhere = _engine(engine, workers, address, memory, (model, device, dtype, tile))
    videos, moved = _videos(sources, warm_start, interval, flow, engine)
    if videos and not (panels and arrays):
        raise typer.BadParameter("it is for images, got videos", param_hint="--no-arrays" if panels else "--no-panels")
    chosen = {"num_inference_steps": steps, "ensemble_size": ensemble, "average": average, "sampler": sampler}
    chosen |= {"sampling": sampling, "seed": seed, "size": tuple(size) if isinstance(size, tuple) else size}
    chosen |= _given(refine_threshold=refine_threshold, interval=interval)
    if refine is not None:  # likewise
        chosen |= {"refine": refine, "refine_share": refine_share}
    bound, level = _given(memory=memory, tile=tile), _given(warm_start=warm_start, flow=moved.checksum if moved else None)
    found = find_images(sources, leave_out=out)
    request = prediction_request(model, dtype=dtype, panels=panels, arrays=arrays, **chosen, **bound, **level)
    with OutputFolder(out, overwrite=overwrite) as folder:
        if folder.recall(request):
            plan = plan_images(found, folder)
            if not plan.images and not plan.failed:  # nothing to load a model for
                _tell(out, 0, plan.done, {}, found.skipped, model)
                return
        # Imported after the checks that need nothing heavy.
        from noise2map.inference.folder import predict_folder
        from noise2map.inference.loading import load_model, pick_device, pick_dtype
        from noise2map.inference.predictor import Predictor
        from noise2map.models.decoding import PredictionOptions

        decoding = PredictionOptions(**chosen)
        hide_progress_of_files()
        here = pick_device(device if elsewhere is None else "cpu")
        predictor = Predictor(*load_model(model, here, pick_dtype(dtype)), **bound)
        with explain_lack_of_memory("use a smaller --batch-size, --size or --ensemble"):
            named: dict[str, Any] = {"model_name": model, "batch_size": batch_size}
            if videos:
                from noise2map.video import predict_video

                report = predict_video(found, folder, predictor, decoding, warm_start=warm_start, flow=moved, **named)
            else:
                report = predict_folder(found, folder, predictor, decoding, panels=panels, arrays=arrays, engine=elsewhere, **named)
    _tell(out, len(report.written), report.skipped, report.failed, report.left_out, f"{predictor.task}, {model}")
    if report.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _given(**values: Any) -> dict[str, Any]:
    """Options that were given; the others are left out, so that folders of before there were any are gone on with."""
    return {name: value for name, value in values.items() if value is not None}


def _engine(
    engine: str, workers: int | None, address: str | None, memory: int | None, source: tuple[str, str, str, int | None]
) -> Any:
    """What does the shards elsewhere, None for this process; options of the other engine are refused before anything is loaded.

    Args:
        engine: Its name.
        workers: Of Ray.
        address: Of Ray.
        memory: Of this process.
        source: Model, device, precision and tile of the workers.
    """
    if engine == "local":
        for name, value in (("--workers", workers), ("--address", address)):
            if value is not None:
                raise typer.BadParameter("it needs --engine ray", param_hint=name)
        return None
    if memory is not None:
        raise typer.BadParameter("it bounds one process; with --engine ray expected --tile", param_hint="--memory")
    model, device, dtype, tile = source
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"with --engine ray expected auto, cpu or cuda, got {device!r}", param_hint="--device")
    from noise2map.cluster import ModelSource, RayEngine

    return RayEngine(ModelSource(model, device, dtype, tile), workers=workers, address=address)


def _videos(
    sources: list[str], warm_start: float | None, interval: float | None, flow: Path | None, engine: str
) -> tuple[bool, Any]:
    """Whether it is videos that are given, and the flow of one, None if none is; what cannot be done with them is refused."""
    videos, moved = _are_videos(sources, warm_start, interval, flow), _flow(flow, sources)
    if videos and engine == "ray":
        raise typer.BadParameter("it is for images, got videos", param_hint="--engine")
    return videos, moved


def _are_videos(sources: list[str], warm_start: float | None, interval: float | None, flow: Path | None) -> bool:
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
