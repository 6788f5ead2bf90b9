"""The other programs, one thin module each: ``resnet-bench`` and ``resnet-verify``."""
