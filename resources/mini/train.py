"""Deprecated name of `resources.mini.training.train`; goes in the next release."""

import sys

from resources.mini.training.train import run_training

if __name__ == "__main__":
    print("resources.mini.train is deprecated: use python -m resources.mini.training.train", file=sys.stderr)
    run_training()
