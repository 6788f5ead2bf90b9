"""The networks: what they compute, how large they are, and how a configuration becomes one."""
