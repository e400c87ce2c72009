"""Open a trained vision network layer by layer, and compare it with another run."""

__version__ = "0.1.0"
