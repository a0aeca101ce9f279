"""A research lab's own MLflow server: the tools of its admin and of its researchers."""

__version__ = "0.1.0"
