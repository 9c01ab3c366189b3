"""Dense maps from images by diffusion, and images whose geometry is plausible.

The public names are imported on first use, so that ``import noise2map`` is quick and ``noise2map.diffusion`` needs
nothing but torch. The Auto classes and pipelines of transformers know our models from then on.
"""

from typing import TYPE_CHECKING

from noise2map.lazy import lazy_names
from noise2map.registration import register as _register

__version__ = "0.1.0"

_PUBLIC = {
    "Noise2MapConfig": "noise2map.models",
    "Noise2MapForSemanticSegmentation": "noise2map.models",
    "Noise2MapForDepthEstimation": "noise2map.models",
    "Noise2MapForNormalEstimation": "noise2map.models",
    "Noise2MapForBevSegmentation": "noise2map.models",
    "Noise2MapBevConfig": "noise2map.models",
    "Noise2MapBevProcessor": "noise2map.models",
    "Noise2MapImageProcessor": "noise2map.models",
    "MapTrainer": "noise2map.training",
    "keep_freed_memory": "noise2map.runs.memory",
    "pipeline": "noise2map.models.pipelines",
}
_ROOMS = (
    "bench",
    "codecs",
    "convert",
    "data",
    "demo",
    "diffusion",
    "evaluation",
    "generation",
    "geometry",
    "guidance",
    "inference",
    "metrics",
    "models",
    "rendering",
    "report",
    "runs",
    "tasks",
    "training",
    "zoo",
)

__all__ = [*_PUBLIC, "__version__"]

_register()

if TYPE_CHECKING:
    from noise2map.models import (
        Noise2MapBevConfig as Noise2MapBevConfig,
    )
    from noise2map.models import (
        Noise2MapBevProcessor as Noise2MapBevProcessor,
    )
    from noise2map.models import (
        Noise2MapConfig as Noise2MapConfig,
    )
    from noise2map.models import (
        Noise2MapForBevSegmentation as Noise2MapForBevSegmentation,
    )
    from noise2map.models import (
        Noise2MapForDepthEstimation as Noise2MapForDepthEstimation,
    )
    from noise2map.models import (
        Noise2MapForNormalEstimation as Noise2MapForNormalEstimation,
    )
    from noise2map.models import (
        Noise2MapForSemanticSegmentation as Noise2MapForSemanticSegmentation,
    )
    from noise2map.models import (
        Noise2MapImageProcessor as Noise2MapImageProcessor,
    )
    from noise2map.models.pipelines import pipeline as pipeline
    from noise2map.runs.memory import keep_freed_memory as keep_freed_memory
    from noise2map.training import MapTrainer as MapTrainer

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC, _ROOMS)
