"""``noise2map audit``: label errors that a model points at, and what to label next."""

from pathlib import Path
from typing import Annotated

import typer

from noise2map.cli import options


def audit(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Labelled images: images/ and maps/, or a dataset as released.")],
    model: Annotated[str, typer.Option(help="A model of classes: shipped name, folder of a checkpoint, or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; an unfinished run is gone on with.")] = Path("audit"),
    dataset: Annotated[
        str | None,
        typer.Option(help="What DIR is: folder, freedoom, ade20k, cityscapes. [default: freedoom if it was rendered, else folder]"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data. [default: all of an undivided folder, else as evaluate takes]")
    ] = None,
    steps: options.Steps = None,
    ensemble: options.Ensemble = None,
    uncertainty: Annotated[
        str,
        typer.Option(help="What ranks images to label next: entropy, least_confidence, or another of several steps or samples."),
    ] = "entropy",
    min_share: Annotated[float, typer.Option(help="Least area of a suspicious region, as a share of its image.")] = 0.001,
    top: Annotated[int, typer.Option(min=1, help="The most regions in suspects.csv.")] = 1000,
    shown: Annotated[int, typer.Option(min=0, help="The most regions that the page shows.")] = 50,
    limit: options.Limit = 0,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    seed: Annotated[int, typer.Option(help="With an image's id it fixes the image's noise.")] = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Find labels that are likely wrong, and images to label next.

    Writes suspects.csv (regions), images.csv, label_next.csv, report.html and the model's maps. Run again after labels were
    mended, it looks at those images alone.
    """
    from noise2map.runs.output_folder import OutputFolder

    with OutputFolder(out, overwrite=overwrite) as target:
        import transformers  # after the checks that need nothing heavy

        from noise2map.audit.run import AuditOptions, kind_of, run_audit
        from noise2map.evaluation.opening import ScoredData
        from noise2map.models.decoding import PredictionOptions

        transformers.utils.logging.disable_progress_bar()
        data = ScoredData(
            dataset=dataset or kind_of(folder, split),
            root=folder,
            split=split,
            limit=limit,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            seed=seed,
        )
        chosen = AuditOptions(
            model=model,
            data=data,
            decoding=PredictionOptions(num_inference_steps=steps, ensemble_size=ensemble, seed=seed),
            uncertainty=uncertainty,
            min_share=min_share,
            top=top,
            shown=shown,
        )
        report = run_audit(chosen, target)
    print(report.text())
    print(f"\n{out / 'report.html'}: {report.looked_at} images looked at by the model in this run")
