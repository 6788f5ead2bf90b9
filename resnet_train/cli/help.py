"""What there is to set, for ``--help``."""

from __future__ import annotations

from textwrap import indent

from resnet_train.cli.explain import natural
from resnet_train.cli.overrides import PROGRAM
from resnet_train.config.store import config_folder, options_of


def help_text() -> str:
    """Groups with their options, and the commented values of conf/train.yaml."""
    groups = "\n".join(
        f"  {group + '=':12}{', '.join(sorted(options_of(group), key=natural))}"
        for group in ("model", "dataset", "optim", "schedule", "experiment")
    )
    _, _, values = (config_folder() / "train.yaml").read_text(encoding="utf-8").partition("\nname:")
    values = "name:" + values.partition("\nhydra:")[0]
    return f"""\
{PROGRAM} trains a residual network; every override changes one value of its configuration.

  {PROGRAM} experiment=quick                          a recipe: ResNet-20 on CIFAR-10 in ten epochs
  {PROGRAM} model=resnet18 optim.lr=0.1               a run of your own, into a new directory under outputs/
  {PROGRAM} -m model=resnet20,resnet32 seed=0,1,2     a sweep: one run for each combination
  {PROGRAM} resume=outputs/DATE/TIME-NAME             continue a run where it stopped; resume=latest: the newest

Groups:
{groups}
  The keys of an option, and what they mean, stand in its file in {config_folder()}

Values (conf/train.yaml):
{indent(values, "  ")}
Flags:
  -m, --multirun        run every combination of comma-separated values
  --cfg job             print the whole configuration and do nothing; with --resolve, as it will be used
  --config-dir DIR      a folder with YAML options of your own; with --config-name NAME, of your own main file
  --version             the version of this program
  -sc install=bash      complete overrides in this shell (bash, zsh, fish)
  --hydra-help          all flags of Hydra"""
