"""``python -m resnet_train``: the same as ``resnet-train``."""

from resnet_train.train import main

if __name__ == "__main__":
    main()
