"""Times one model in a process of its own and prints a line of JSON; called by compare.py, in either of the two environments."""

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def public_calls(arguments: argparse.Namespace, image: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Encoding, and whole runs by the public code, under autocast if bfloat16."""
    sys.path.insert(0, str(HERE))
    from public_model import build, image_metas

    model = build(arguments.source)
    model.load_state_dict(torch.load(arguments.work / "weights.pth", weights_only=True)["state_dict"])
    model.eval()
    metas = image_metas(*image.shape[-2:])
    narrow = arguments.dtype == "bfloat16"

    def whole(steps: int) -> torch.Tensor:
        model.timesteps = steps
        with torch.autocast("cpu", torch.bfloat16) if narrow else contextlib.nullcontext():
            return model.encode_decode(image, metas)

    def encode() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if narrow else contextlib.nullcontext():
            return model.extract_feat(image)[0]

    return {"encode": encode, "one_step": lambda: whole(1), "three_steps": lambda: whole(3)}


def our_calls(arguments: argparse.Namespace, image: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The same by this library, weights in bfloat16 if so; compiled as ``noise2map bench`` does."""
    import noise2map
    from noise2map import Noise2MapForSemanticSegmentation

    if arguments.keep_memory:
        noise2map.keep_freed_memory()
    dtype = getattr(torch, arguments.dtype)
    model = Noise2MapForSemanticSegmentation.from_pretrained(arguments.work / "converted", dtype=dtype).eval()
    if arguments.compiled:
        for part in (model.encoder, model.decoder, model.head):
            part.compile(dynamic=False)

    def whole(steps: int) -> torch.Tensor:
        return model(image, num_inference_steps=steps, generator=torch.Generator().manual_seed(5)).logits

    return {"encode": lambda: model.encode_image(image), "one_step": lambda: whole(1), "three_steps": lambda: whole(3)}


def measure(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Medians of seconds by the clock and of the processor; a further step is half of what two more cost.

    A whole run must have warmed everything up before.
    """
    by_clock: dict[str, list[float]] = {name: [] for name in calls}
    by_processor: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            processor, clock = time.process_time(), time.perf_counter()
            call()
            by_clock[name].append(time.perf_counter() - clock)
            by_processor[name].append(time.process_time() - processor)
    found: dict[str, float] = {}
    for unit, times in (("s", by_clock), ("cpu_s", by_processor)):
        medians = {name: statistics.median(values) for name, values in times.items()}
        medians["further_step"] = (medians["three_steps"] - medians["one_step"]) / 2
        found |= {f"{name}_{unit}": round(value, 4) for name, value in medians.items()}
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("implementation", choices=("public", "ours"))
    parser.add_argument("--source", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--keep-memory", action="store_true", help="The public code gets the like by variables of the environment.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    image = torch.load(arguments.work / f"image_{arguments.size}.pt", weights_only=True)
    with torch.no_grad():
        calls = (public_calls if arguments.implementation == "public" else our_calls)(arguments, image)
        ready = time.perf_counter()
        calls["three_steps"]()
        first = time.perf_counter()
        found = measure(calls, arguments.repeats)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found |= {"build_s": round(ready - start, 3), "first_result_s": round(first - ready, 3)}
    found |= {"peak_mib": round(usage.ru_maxrss / 1024, 1), "page_faults": usage.ru_minflt, "torch": torch.__version__}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
