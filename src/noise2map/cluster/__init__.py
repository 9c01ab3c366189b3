"""Prediction by many processes: `RayEngine` does the shards of `noise2map.inference.predict_folder` on a cluster of Ray."""

from noise2map.cluster.engine import RayEngine as RayEngine
from noise2map.cluster.worker import ModelSource as ModelSource
