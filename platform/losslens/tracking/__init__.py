"""Curves in other tools: TensorBoard, Weights & Biases, MLflow. What is sent is read from the results, never from training.

So a tool that is slow, away or full slows no step and fails no run; every stage is sent alike, and a run of last year or one that
was imported as well as one that trains.
"""

from losslens.tracking.destinations import Destination, Tool, opened
from losslens.tracking.points import Point, Run
from losslens.tracking.send import send_new

__all__ = ["Destination", "Point", "Run", "Tool", "opened", "send_new"]
