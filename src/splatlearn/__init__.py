"""splatlearn: pre-train encoders of 3D and 2D data without labels, and prove what they learnt."""

__version__ = "0.1.0"
