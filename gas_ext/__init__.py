"""Few-step sampling of diffusion and flow models with learned solvers."""

__version__ = "0.1.0"
