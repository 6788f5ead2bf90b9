"""``resnet-bench``: images per second of this project's training loop and of the loops that it replaces, in one run.

Three loops train the same network on the same images, in alternating rounds, so that a machine whose speed drifts
favours none of them:

- ``tutorial``: what people copy: torchvision transforms on PIL images, a DataLoader with a worker for each core, fp32,
  NCHW, the loss and the accuracy read at every step.
- ``tuned``: what a careful user makes of it: the same loader with pinned memory and workers that stay, mixed precision,
  channels_last, nothing read from the device in between.
- ``resnet-train``: the batches and the step of this project, as its training loop calls them.

Each ``--variant`` is resnet-train once more, with other values: ``--variant compile=true`` measures what compiling
brings, ``--variant dataset.num_train=500000`` (with ``dataset=synthetic``) whether the speed stays as the data grows.

Beside them the machine itself is measured in each round: large matrix multiplications and a large copy. They say what
the network could reach here at most, its roofline.
"""
