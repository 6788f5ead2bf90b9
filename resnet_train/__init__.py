"""Training of residual networks on small images, driven by configuration."""
