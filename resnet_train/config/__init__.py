"""The mirror of ``conf/``: one module for each group, with its dataclasses and the checks of their values."""
